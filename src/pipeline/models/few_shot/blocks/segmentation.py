"""Visual anatomy: splitting a video's T frames into L ordered phases (LGA Sec. 3.2, Algorithm 1, Table 5).

A segmenter gives every frame the number of its phase; `overlap_masks` then lets neighbouring phases share
frames. Everything is batched over leading dimensions. The choice of the phases carries no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipeline.errors import UserError, unknown


def cluster_segment(f: Tensor, L: int) -> Tensor:
    """CLUSTER of LGA Algorithm 1: frames (..., T, D) -> phase numbers (..., T), int64, in time order.

    Begins with every frame on its own and merges, until L are left, the two adjacent clusters whose mean
    frames have the highest cosine (of equal ones the earliest). Raises UserError if T < L.
    """
    frames, lead = _flat(f, L)
    count = frames.shape[1]
    # The cosine of two means needs the frames' inner products only: T x T numbers instead of T x D.
    gram = frames @ frames.transpose(1, 2)
    phase = torch.arange(count, device=f.device).expand(len(frames), count)
    for clusters in range(count, L, -1):
        member = _members(phase, clusters).to(gram.dtype)
        dots = member @ gram @ member.transpose(1, 2)
        length = dots.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        cosine = dots.diagonal(offset=1, dim1=1, dim2=2) / (length[:, :-1] * length[:, 1:]).clamp_min(1e-12)
        left = cosine.argmax(1, keepdim=True)
        phase = phase - (phase > left).long()
    return phase.reshape(*lead, count)


def hard_segment(T: int, L: int, device: torch.device | str | None = None) -> Tensor:
    """HARD: L equal stretches of time, phase numbers (T,), int64; the first T mod L are one frame longer.

    T = 8, L = 3 gives 0-2 | 3-5 | 6-7. Raises UserError if T < L.
    """
    _check(T, L)
    sizes = torch.full((L,), T // L, device=device)
    sizes[: T % L] += 1
    return torch.arange(L, device=device).repeat_interleave(sizes)


def tw_finch(f: Tensor, L: int) -> Tensor:
    """TW-FINCH (Sarfraz et al., CVPR 2021) with exactly L clusters: frames (..., T, D) -> (..., T), int64.

    Takes the coarsest partition that has at least L clusters and merges its closest linked pair until L are
    left. If even the first partition has fewer (at T = 8 that is frequent, and the method has no rule for
    it), the cluster with most frames (the earliest of equal ones) is cut between those two of its successive
    frames that have the lowest cosine, until there are L. Clusters are numbered by their mean time (of equal
    ones: earliest first frame) and need not be contiguous. Raises UserError if T < L.
    """
    frames, lead = _flat(f, L)
    levels = twfinch_partitions(frames)
    label = next(levels)
    for coarser in levels:
        enough = _active(coarser).sum(1, keepdim=True) >= L
        label = torch.where(enough, coarser, label)
    label = _merge_down(frames, label, L)
    label = _split_up(frames, label, L)
    return _in_time_order(label).reshape(*lead, frames.shape[1])


def twfinch_partitions(frames: Tensor) -> Iterator[Tensor]:
    """The partitions of TW-FINCH, fine to coarse: (B, T, D) -> labels (B, T), one tensor a level.

    A cluster's label is the index of its earliest frame. Every cluster has a neighbour to join, so each level
    has at most half the clusters of the one before; a level with a single cluster is dropped unless it is the
    first. A video whose hierarchy has ended repeats its last partition until the hierarchies of all have.
    """
    label = torch.arange(frames.shape[1], device=frames.device).expand(frames.shape[:2])
    label = _join(label, _links(frames, label)[1])
    while True:
        yield label
        coarser = _join(label, _links(frames, label)[1])
        goes_on = _active(coarser).sum(1, keepdim=True) > 1
        if not goes_on.any():
            return
        label = torch.where(goes_on, coarser, label)


def _links(frames: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Time-weighted distances of clusters, and which of them are linked (bool), both (B, T, T).

    A cluster lives in the slot of its label. Distance = (1 - cosine of the means) * |difference of mean
    times|, times being (i + 1) / T. Links = the non-zeros of A A^T off the diagonal, A = first-neighbour
    graph + identity; slots that hold no cluster have none.
    """
    batch, count = label.shape
    active = _active(label)
    member = _members(label, count).to(frames.dtype)
    size = member.sum(2).clamp_min(1)
    mean = (member @ frames) / size[..., None]
    time = (member @ torch.arange(1, count + 1, device=label.device, dtype=frames.dtype)) / (size * count)
    unit = mean / mean.norm(dim=2, keepdim=True).clamp_min(1e-12)
    distance = (1 - unit @ unit.transpose(1, 2)).clamp_min(0) * (time[:, :, None] - time[:, None, :]).abs()
    itself = torch.eye(count, dtype=torch.bool, device=label.device)
    distance = distance.masked_fill(itself | ~(active[:, :, None] & active[:, None, :]), 1e12)
    neighbour = torch.zeros(batch, count, count, dtype=frames.dtype, device=label.device)
    neighbour.scatter_(2, distance.argmin(2, keepdim=True), 1)
    linked = (neighbour + itself) * active[:, :, None] * active[:, None, :]
    return distance, (linked @ linked.transpose(1, 2) > 0) & ~itself


def _join(label: Tensor, links: Tensor) -> Tensor:
    """Labels after merging the connected components of `links` (B, T, T) between slots."""
    reach = (links | torch.eye(links.shape[1], dtype=torch.bool, device=links.device)).float()
    for _ in range(max(links.shape[1] - 1, 1).bit_length()):
        reach = (reach @ reach).clamp_max(1)
    component = reach.argmax(2)  # first slot that is reached
    return component.gather(1, label)


def _merge_down(frames: Tensor, label: Tensor, L: int) -> Tensor:
    """Merges the closest linked pair of clusters, one pair at a time, in videos with more than L clusters."""
    count = label.shape[1]
    while bool((surplus := _active(label).sum(1) > L).any()):
        distance, links = _links(frames, label)
        closest = torch.where(links, distance, torch.inf).flatten(1).argmin(1)
        row, column = closest // count, closest % count
        keep, gone = torch.minimum(row, column)[:, None], torch.maximum(row, column)[:, None]
        label = torch.where(surplus[:, None] & (label == gone), keep, label)
    return label


def _split_up(frames: Tensor, label: Tensor, L: int) -> Tensor:
    """Cuts the largest cluster at its weakest successive pair, in videos with fewer than L clusters."""
    count = label.shape[1]
    unit = frames / frames.norm(dim=2, keepdim=True).clamp_min(1e-12)
    cosine = unit @ unit.transpose(1, 2)
    later = torch.ones(count, count, dtype=torch.bool, device=label.device).triu(1)
    while bool((short := _active(label).sum(1) < L).any()):
        largest = _members(label, count).sum(2).argmax(1, keepdim=True)
        inside = label == largest
        rank = inside.cumsum(1)
        following = later & (rank[:, None, :] == rank[:, :, None] + 1)
        successive = following & inside[:, :, None] & inside[:, None, :]
        weakest = torch.where(successive, cosine, torch.inf).flatten(1).argmin(1)
        cut = (weakest % count)[:, None]  # first frame of the new cluster, hence its label
        after = torch.arange(count, device=label.device) >= cut
        label = torch.where(short[:, None] & inside & after, cut, label)
    return label


def _in_time_order(label: Tensor) -> Tensor:
    """Phase numbers 0.. from cluster labels (B, T), by mean time."""
    count = label.shape[1]
    member = _members(label, count).double()
    mean = (member @ torch.arange(count, device=label.device).double()) / member.sum(2).clamp_min(1)
    slot = torch.arange(count, device=label.device)
    before = (mean[:, None, :] < mean[:, :, None]) | (
        (mean[:, None, :] == mean[:, :, None]) & (slot[None, :] < slot[:, None])
    )
    return (before & _active(label)[:, None, :]).sum(2).gather(1, label)


def _members(label: Tensor, count: int) -> Tensor:
    """Membership (..., count, T), bool, of labels (..., T)."""
    return label.unsqueeze(-2) == torch.arange(count, device=label.device).unsqueeze(-1)


def _active(label: Tensor) -> Tensor:
    """Which slots (B, T) hold a cluster: those whose own frame carries its own index as label."""
    return label == torch.arange(label.shape[1], device=label.device)


def _check(T: int, L: int) -> None:
    if L < 1:
        raise UserError(f"number of phases is {L}; give at least 1")
    if T < L:
        raise UserError(f"cannot split {T} frames into {L} phases; sample more frames or ask for less")


def _flat(f: Tensor, L: int) -> tuple[Tensor, torch.Size]:
    """Frames (B, T, D) in float64 (so that near-ties hang less on rounding), no gradient; leading shape."""
    _check(f.shape[-2], L)
    return f.detach().reshape(-1, *f.shape[-2:]).double(), f.shape[:-2]


def _hard(f: Tensor, L: int) -> Tensor:
    return hard_segment(f.shape[-2], L, f.device).expand(f.shape[:-1])


SEGMENTERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "cluster": cluster_segment,
    "hard": _hard,
    "twfinch": tw_finch,
}
"""Name -> function of (frames (..., T, D), L) giving phase numbers (..., T). The rows of LGA Table 5."""


def overlap_masks(assignment: Tensor, L: int, overlap: int = 1) -> Tensor:
    """Membership of frames in phases: phase numbers (..., T) -> bool (..., L, T).

    Phase k has its own frames, the last `overlap` frames of phase k-1 and the first `overlap` frames of phase
    k+1, in time (all of them if the neighbour has fewer). 0 gives disjoint phases. Raises UserError if
    overlap < 0.
    """
    if overlap < 0:
        raise UserError(f"overlap of phases is {overlap} frames; give 0 or more")
    own = _members(assignment, L)
    order = own.cumsum(-1)  # 1 for a phase's first frame
    first = own & (order <= overlap)
    last = own & (own.sum(-1, keepdim=True) - order < overlap)
    mask = own.clone()
    mask[..., 1:, :] |= last[..., :-1, :]
    mask[..., :-1, :] |= first[..., 1:, :]
    return mask


def segment(f: Tensor, L: int, method: str = "cluster", overlap: int = 1) -> Tensor:
    """Phases of videos: frames (..., T, D) -> membership bool (..., L, T), no phase empty.

    Raises UserError for an unknown method, T < L, or a negative overlap.
    """
    if method not in SEGMENTERS:
        raise unknown("segment method", method, SEGMENTERS)
    return overlap_masks(SEGMENTERS[method](f, L), L, overlap)

"""Whether what a training asks for can come at all: Ray waits without end for a GPU that no node has."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

from pipeline.cluster.head import START_SECONDS
from pipeline.config import Cluster
from pipeline.errors import UserError

SETTLE_SECONDS = 5.0  # until a node that has started says what it has


def need_of(settings: Cluster) -> dict[str, float]:
    """What Ray reserves for one worker, or one slot."""
    return {"CPU": settings.threads} | ({"GPU": settings.gpus} if settings.gpus else {})


def room_for(need: dict[str, float], nodes: Sequence[dict[str, Any]]) -> int:
    """How many workers fit on nodes (as `ray.nodes()` lists them): each of them on one node."""
    living = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(min(int(has.get(what, 0) / wanted + 1e-6) for what, wanted in need.items()) for has in living)


def wait_for_room(count: int, settings: Cluster, least: int = 0) -> int:
    """How many of `count` workers there is room for on the Ray of this process, whose other nodes may still be joining.

    Raises:
        UserError: there is room for fewer than `least` (default: for fewer than all).
    """
    import ray

    seconds = START_SECONDS if settings.nodes > 1 else SETTLE_SECONDS
    need, end = need_of(settings), time.monotonic() + seconds
    while (room := room_for(need, ray.nodes())) < count and time.monotonic() < end:
        time.sleep(0.2)
    if room < (least or count):
        raise UserError(_lacking(count, room, need, ray.cluster_resources()))
    return min(room, count)


def _lacking(count: int, room: int, need: dict[str, float], has: dict[str, float]) -> str:
    each = " and ".join(f"{wanted:g} {what}" for what, wanted in need.items())
    there = " and ".join(f"{has.get(what, 0):g} {what}" for what in need)
    short = "GPU" if has.get("GPU", 0) < need.get("GPU", 0) * count else "CPU"
    what = "cluster.gpus: 0 trains on CPUs" if short == "GPU" else "lower cluster.workers, slots or threads"
    return (
        f"{count} times {each} are asked for, and Ray on {socket.gethostname()} has {there} in all, room for {room}; "
        f"{what}, or run where there is more (`python -m pipeline doctor` says what this machine has)"
    )

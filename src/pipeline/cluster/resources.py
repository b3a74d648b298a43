"""Whether what is asked for can come at all: Ray waits without end for a GPU that no node has."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from pipeline.cluster.head import OURS, START_SECONDS
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
    need = need_of(settings)
    room = _room_within(START_SECONDS if settings.nodes > 1 else SETTLE_SECONDS, count, need)
    if room < (least or count):
        short = "GPU" if _has().get("GPU", 0) < need.get("GPU", 0) * count else "CPU"
        what = "cluster.gpus: 0 trains on CPUs" if short == "GPU" else "lower cluster.workers, slots or threads"
        raise UserError(_lacking(count, room, need, what))
    return min(room, count)


def wait_for_tasks(count: int, need: dict[str, float]) -> int:
    """How many of `count` tasks that share the work there is room for, likewise; fewer than all do it too, and a line
    says so.

    Raises:
        UserError: there is room for none.
    """
    need = {what: wanted for what, wanted in need.items() if wanted}
    room = _room_within(START_SECONDS if OURS in os.environ else SETTLE_SECONDS, count, need)
    if not room:
        raise UserError(_lacking(count, room, need, "fewer --workers (resources: threads) need fewer CPUs"))
    if room < count:
        print(f"there is room for {room} of {count} tasks at a time", file=sys.stderr, flush=True)
    return min(room, count)


def _room_within(seconds: float, count: int, need: dict[str, float]) -> int:
    """For how many of `count` there is room, once it is for all of them or after so many seconds."""
    import ray

    end = time.monotonic() + seconds
    while (room := room_for(need, ray.nodes())) < count and time.monotonic() < end:
        time.sleep(0.2)
    return room


def _has() -> dict[str, float]:
    import ray

    return ray.cluster_resources()


def _lacking(count: int, room: int, need: dict[str, float], what: str) -> str:
    each = " and ".join(f"{wanted:g} {name}" for name, wanted in need.items())
    there = " and ".join(f"{_has().get(name, 0):g} {name}" for name in need)
    return (
        f"{count} times {each} are asked for, and Ray on {socket.gethostname()} has {there} in all, room for {room}; "
        f"{what}, or run where there is more (`python -m pipeline doctor` says what this machine has)"
    )

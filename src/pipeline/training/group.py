"""The process group of a training with several workers.

Its store listens on the address of its Ray node alone, which is loopback on one machine. Ray Train leaves the store to
torch, which listens on every interface and asks nobody for a token.
"""

from __future__ import annotations

import socket
from datetime import timedelta

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

_LISTENING: list[socket.socket] = []  # in the first worker, from its address to its store


class Group(TorchConfig):
    """NCCL where each worker has a GPU, else gloo."""

    @property
    def backend_cls(self) -> type:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group, backend_config: Group) -> None:
        kind = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
        address, port = worker_group.execute_single(0, _listen)
        worker_group.execute(_set_torch_distributed_env_vars)
        count, seconds = len(worker_group), backend_config.timeout_s
        joining = [
            worker_group.execute_single_async(rank, _join, kind, address, port, rank, count, seconds)
            for rank in range(count)
        ]
        ray.get(joining)


def _listen() -> tuple[str, int]:
    """Address and port of the store to be: taken here, so that nobody else gets the port in between."""
    address = ray.util.get_node_ip_address()
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listening.bind((address, 0))
    listening.listen()
    _LISTENING.append(listening)
    return address, listening.getsockname()[1]


def _join(kind: str, address: str, port: int, rank: int, count: int, seconds: float) -> None:
    """Be worker `rank` of `count`; the first one holds the store."""
    own = {"is_master": True, "master_listen_fd": _LISTENING.pop().detach()} if rank == 0 else {}
    wait = timedelta(seconds=seconds)
    store = dist.TCPStore(address, port, count, timeout=wait, wait_for_workers=False, **own)
    dist.init_process_group(kind, store=store, rank=rank, world_size=count, timeout=wait)

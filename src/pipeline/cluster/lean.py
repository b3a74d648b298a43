"""What `ray start` can't be told on its command line: Ray calls `lean` by RAY_START_HOOK, before it starts anything."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from typing import Any

PATIENCE = 150.0  # seconds until a node of Ray's has started


def lean(params: Any, head: bool) -> None:
    """Start no service that nothing uses, and let Ray choose the dashboard's port, which it then holds.

    A port that is looked for here and bound there is taken in between by whoever starts at the same moment.
    """
    params.ray_client_server_port = None  # drivers run on the cluster's nodes: nobody comes as ray://
    params.no_monitor = True  # the autoscaler's: nodes are given
    params.dashboard_port = None  # 8265, or the next ones that are free
    if os.environ.get("PIPELINE_GIVEN_PORTS") == "1":
        names = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port", "metrics_export_port")
        for name, port in zip(names, free_ports(len(names)), strict=True):
            setattr(params, name, port)
    be_patient()


def free_ports(count: int) -> list[int]:
    """So many TCP ports that are free on every address of this machine now."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]


def be_patient() -> None:
    """Let Ray wait longer than half a minute until the node that it starts is known: a busy machine needs more."""
    from ray._private import services

    asked = services.get_node

    def get_node(*words: Any, **options: Any) -> Any:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return asked(*words, **options)
            except RuntimeError:  # not known yet
                if time.monotonic() > end:
                    raise
            time.sleep(0.2)

    services.get_node = get_node

"""What `ray start` can't be told on its command line: Ray calls `lean` by RAY_START_HOOK, before it starts anything."""

from __future__ import annotations

from typing import Any


def lean(params: Any, head: bool) -> None:
    """Start no service that nothing uses, and let Ray choose the dashboard's port, which it then holds.

    A port that is looked for here and bound there is taken in between by whoever starts at the same moment.
    """
    params.ray_client_server_port = None  # drivers run on the cluster's nodes: nobody comes as ray://
    params.no_monitor = True  # the autoscaler's: nodes are given
    params.dashboard_port = None  # 8265, or the next ones that are free

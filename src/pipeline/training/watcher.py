"""Frees the room of a training whose controller has died; Ray's own watcher of it fails where two Rays run.

Ray Train's asks the dashboard, each second, of the Ray that it finds on the machine. With two of them, as with another
user's, it finds none and ends with an error, and without a dashboard it never gets an answer: then the room of a killed
controller stays taken, and whoever waits for it waits for ever. This one asks the Ray that it belongs to.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import Any

import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private.state import actors, state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

SECONDS = 5.0  # between two looks


def rooms_of(actor: str) -> list[PlacementGroup]:
    """The placement groups that an actor (hexadecimal id) has made and that are not removed."""
    table = [
        PlacementGroupTableData.FromString(row) for row in state._connect_and_get_accessor().get_placement_group_table()
    ]
    mine = [row for row in table if row.creator_actor_id.hex() == actor]
    kept = [row for row in mine if row.state != PlacementGroupTableData.REMOVED]
    return [PlacementGroup(ray.PlacementGroupID(row.placement_group_id)) for row in kept]


class Watcher:
    """An actor that outlives the controller it looks after, and ends once it has freed what that left."""

    def __init__(self, controller: str) -> None:
        self.controller = controller
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while actors(self.controller).get("State") not in (None, "DEAD"):
            time.sleep(SECONDS)
        for group in rooms_of(self.controller):
            remove_placement_group(group)
        os._exit(0)  # an actor can be left from its own thread alone, which waits for calls that do not come


class WatcherCallback(PlacementGroupCleanerCallback):
    """Ray's own callback with our watcher in the place of its cleaner."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start the watcher of this controller, on the head node."""
        self._controller_actor_id = ray.get_runtime_context().get_actor_id()
        self._cleaner = (
            ray.remote(num_cpus=0)(Watcher)
            # In no placement group, though a trial of Tune, in which a controller may run, has one.
            .options(lifetime="detached", scheduling_strategy="DEFAULT", resources={HEAD_NODE_RESOURCE_NAME: 0.001})
            .remote(self._controller_actor_id)
        )

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Nothing: the watcher asks Ray whose room is whose; a controller can die before its workers have started."""

    def _stop_cleaner(self) -> None:
        if self._cleaner is not None:
            with suppress(Exception):  # Ray is gone, and the watcher with it
                ray.kill(self._cleaner)
            self._cleaner = None

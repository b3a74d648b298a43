"""Ray Train as the project uses it, on a real Ray."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_the_room_of_a_killed_controller_is_free_again(on_own_ray):
    seen = on_own_ray("lost_controller.py")
    assert seen["works"] and seen["taken"]
    assert seen["freed"] is not None and seen["freed"] < 30

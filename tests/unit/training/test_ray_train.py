"""Ray Train as the project uses it, on a real Ray."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_the_room_of_a_killed_controller_is_free_again(on_own_ray):
    seen = on_own_ray("lost_controller.py")
    for at in seen.values():
        assert at["works"] and at["taken"]
        assert at["freed"] is not None and at["freed"] < 30
    assert not seen["early"]["started"] and seen["late"]["started"]

"""What the tests of sheets share."""

from __future__ import annotations

from pipeline.plan import Entry


def cell_ids(entry: Entry) -> tuple[str, ...]:
    """Identities of the numbers of one place."""
    return tuple(cell.id for cell in entry.cells)

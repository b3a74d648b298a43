"""A table as a fragment of an HTML page, without style or script of its own."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline.tables.layout import LEGEND

if TYPE_CHECKING:
    from jinja2 import Environment

    from pipeline.tables.layout import Layout


@lru_cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(loader=PackageLoader("pipeline.tables"), autoescape=True, undefined=StrictUndefined)


def html(title: str, key: str, page: Layout) -> str:
    """The table as a `<section>`.

    Args:
        key: its id; those of its notes begin with it, so that several tables fit on one page.
    """
    starts, column = [], 1
    for _, group in page.groups:
        starts.append(column)
        column += len(group)
    two_lines = any(leaf for _, group in page.groups for leaf in group)
    template = _templates().get_template("table.html.j2")
    return template.render(title=title, key=key, page=page, starts=starts, two_lines=two_lines, legend=LEGEND) + "\n"

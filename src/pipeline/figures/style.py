"""How figures look, and how they are written: PNG to look at, SVG and PDF to print.

Colours are those of Okabe and Ito, which people with colour-blindness can tell apart; marks and dashes differ too.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.files import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00", "#7F7F7F")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
INK, PAPER = "#1a1a1a", "#fffffe"  # used for nothing else, so that a page can put its own colours in their place
FORMATS = ("png", "svg", "pdf")
STYLE = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10, "legend.fontsize": 9,
    "figure.facecolor": PAPER, "axes.facecolor": "none", "savefig.facecolor": PAPER, "legend.facecolor": PAPER,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#8a8a8a", "grid.alpha": 0.3, "axes.axisbelow": True,
    "lines.linewidth": 1.6, "lines.markersize": 5, "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "figure", "pdf.fonttype": 42,
    "figure.dpi": 100, "savefig.dpi": 200,
}  # fmt: skip


@contextmanager
def canvas(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 4.0), **options) -> Iterator[tuple]:
    """A figure and its axes (2-D array) in our style, without a window; `size` in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


@contextmanager
def parts(size: tuple[float, float], heights: Sequence[float]) -> Iterator[tuple]:
    """As `canvas`, with a panel below the other for each of `heights` (shares); the panels are a list."""
    options = {"gridspec_kw": {"height_ratios": heights}}
    with canvas(len(heights), 1, size, **options) as (figure, axes):
        yield figure, list(axes[:, 0])


def caption(figure: Figure, text: str) -> None:
    """How it was measured, in small letters below a figure."""
    width = int(figure.get_figwidth() * 17.5)
    figure.supxlabel("\n".join(textwrap.wrap(text, width)), fontsize=7.5, x=0.01, ha="left")


def legend(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, above them."""
    handles, names = axes.get_legend_handles_labels()
    across = max(1, int(figure.get_figwidth() * 13 / (max(map(len, names)) + 6)))
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), across))


def write(figure: Figure, stem: Path) -> tuple[Path, ...]:
    """Writes `stem`.png, .svg and .pdf; equal figures are equal files."""
    import matplotlib

    stem.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")  # parts are placed once, not once for each kind of file
    paths = []
    for kind in FORMATS:
        path = stem.with_name(f"{stem.name}.{kind}")
        with new_file(path) as temporary:
            temporary.write_bytes(content(figure, kind))
        paths.append(path)
    return tuple(paths)


def content(figure: Figure, kind: str) -> bytes:
    """The figure as a file of one of the `FORMATS`, without the time at which it was made."""
    import matplotlib

    stamp = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format=kind, metadata=stamp)
    return stream.getvalue()

"""A table in LaTeX, ready to be pasted: booktabs rules, notes below the table, nothing wider than the page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.tables.layout import LEGEND, MISSING

if TYPE_CHECKING:
    from pipeline.tables.layout import Layout, Place

PACKAGES = ("booktabs", "threeparttable", "adjustbox")
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}",
    "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "–": "--", "—": "---", "…": r"\dots{}", "†": r"\dag{}",
    "‡": r"\ddag{}", "→": r"$\rightarrow$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$", "²": "$^2$",
    "α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "σ": r"$\sigma$", "τ": r"$\tau$", "°": r"$^\circ$",
    "‘": "`", "’": "'", "“": "``", "”": "''", "\u00a0": "~",
}  # fmt: skip
MARKS = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")  # of a place by its rank


def escape(text: str) -> str:
    """`text` as LaTeX prints it: every character that means something to TeX, or that pdfLaTeX's fonts lack."""
    return "".join(SPECIAL.get(mark, mark) for mark in re.sub(r"\s*\n\s*", " ", text))


def latex(title: str, label: str, page: Layout) -> str:
    """The table as a float of two columns' width.

    A measured row has two lines: ours with its interval, then the published value with the difference.

    Args:
        title: becomes the caption.
        label: for `\\ref`, without its "tab:".
    """
    lines = [
        f"% \\usepackage{{{','.join(PACKAGES)}}}",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{escape(title)}}}",
        rf"\label{{tab:{label}}}",
        r"\begin{adjustbox}{max width=\linewidth}",
        r"\begin{threeparttable}",
        rf"\begin{{tabular}}{{l{'r' * len(page.columns)}}}",
        r"\toprule",
        *_head(page),
        r"\midrule",
        *(line for name, places in page.rows for line in _row(page, name, places)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\begin{tablenotes}",
        r"\footnotesize",
        *(rf"\item {escape(text)}" for text in (page.measured, page.note, LEGEND) if text),
        *(rf"\item[{number}] {escape(text)}" for number, text in enumerate(page.footnotes, 1)),
        r"\end{tablenotes}",
        r"\end{threeparttable}",
        r"\end{adjustbox}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _head(page: Layout) -> list[str]:
    marks = [_marks(page.column_notes.get(name, [])) for name in page.columns]
    leaves = [leaf for _, group in page.groups for leaf in group]
    if not any(leaves):
        return [_line(["", *(escape(name) + mark for name, mark in zip(page.columns, marks, strict=True))])]
    above, rules, start = [""], [], 2
    for name, group in page.groups:
        end = start + len(group) - 1
        above.append(rf"\multicolumn{{{len(group)}}}{{c}}{{{escape(name)}}}")
        if group != [""]:
            rules.append(rf"\cmidrule(lr){{{start}-{end}}}")
        start = end + 1
    below = ["", *(escape(leaf) + mark for leaf, mark in zip(leaves, marks, strict=True))]
    return [_line(above), " ".join(rules), _line(below)]


def _row(page: Layout, name: str, places: list[Place]) -> list[str]:
    first = _line([escape(name) + _marks(page.row_notes.get(name, [])), *map(_ours, places)])
    if not any(place.published and place.status != "published-only" for place in places):
        return [first]
    return [first, _line([r"\quad\footnotesize published (difference)", *map(_published, places)])]


def _ours(place: Place) -> str:
    if place.status == "published-only":
        text = f"({escape(place.published)})"
    elif place.status == "missing":
        text = escape(MISSING)
    else:
        text = MARKS[place.rank].format(escape(place.value)) if place.value else ""
        text += rf" {{\scriptsize $\pm$\,{escape(place.half)}}}" if place.half else ""
    return text + _marks(place.notes, "tnote")  # which takes no room: the numbers stay aligned


def _published(place: Place) -> str:
    if not place.published or place.status == "published-only":
        return ""
    delta = f" ({escape(place.delta)})" if place.delta else ""
    return rf"{{\footnotesize {escape(place.published)}{delta}}}"


def _marks(notes: list[int], command: str = "textsuperscript") -> str:
    return rf"\{command}{{{','.join(map(str, notes))}}}" if notes else ""


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"

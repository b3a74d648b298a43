"""Draws the README's picture from a finished demo: `python docs/img/table4.py results/lga/table4.csv`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

OUT = Path(__file__).with_suffix(".svg")
NAMES = (0.1, 1.35)  # left edges of the two name columns, in inches
FIRST, WIDTH = 4.15, 1.75  # right edge of the first value, and the distance to the next one
LINE, GREY = 0.29, "#57606a"


def read(path: str) -> dict[str, dict[str, dict[str, str]]]:
    """Row -> column -> record of the CSV file."""
    rows: dict[str, dict[str, dict[str, str]]] = {}
    with open(path, newline="") as file:
        for record in csv.DictReader(file):
            rows.setdefault(record["row"], {})[record["column"]] = record
    return rows


def draw(rows: dict[str, dict[str, dict[str, str]]]) -> None:
    """The table in the paper's layout: our value and interval, the best of a column in bold, then the printed value."""
    columns = list(next(iter(rows.values())))
    best = {c: max(float(row[c]["value"]) for row in rows.values()) for c in columns}
    width, height = FIRST + WIDTH * (len(columns) - 1) + 1.05, LINE * (len(rows) + 3.1)
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "", "font.family": "sans-serif", "font.size": 10}
    page = plt.figure(figsize=(width, height), facecolor="white")

    def write(x: float, line: float, text: str, **style: object) -> None:
        page.text(x / width, 1 - LINE * (line + 0.6) / height, text, va="center", **style)

    def rule(line: float, thick: float) -> None:
        y = 1 - LINE * line / height
        page.add_artist(plt.Line2D([0.01, 0.99], [y, y], color="black", linewidth=thick))

    for x, name in zip(NAMES, ("video-video", "video-text"), strict=True):
        write(x, 0.2, name, weight="bold")
    for i, column in enumerate(columns):
        write(FIRST + WIDTH * i, 0.2, column.replace("/", " "), weight="bold", ha="center")
    for line, (row, places) in enumerate(rows.items(), 1):
        for x, part in zip(NAMES, row.split(","), strict=True):
            write(x, line + 0.3, part.partition("=")[2].replace("-", "–", part.endswith("=-")))
        for i, column in enumerate(columns):
            place = places[column]
            weight = "bold" if float(place["value"]) == best[column] else "normal"
            ours = f"{float(place['value']):.1f} ± {float(place['ci95']):.1f}"
            write(FIRST + WIDTH * i, line + 0.3, ours, ha="right", weight=weight)
            write(FIRST + WIDTH * i + 0.1, line + 0.3, f"paper {float(place['published']):.1f}", color=GREY, size=8.5)
    rule(0.15, 1.2), rule(1.2, 0.6), rule(len(rows) + 1.5, 1.2)
    scale = next(iter(rows.values()))[columns[0]]["scale"]
    note = f"LGA, Table 4, at {scale} scale: accuracy in per cent ± 95 % interval. "
    note += "Generated videos stand in for both data sets."
    write(NAMES[0], len(rows) + 1.75, note, color=GREY, size=8.5)
    page.savefig(OUT, metadata={"Date": None})


if __name__ == "__main__":
    draw(read(sys.argv[1]))
    print(OUT)

"""The command line, a file for each group of commands; `--help` lists them in the order of these imports."""

# isort: off
from pipeline.cli import data, runs, own, tables, check, cluster
# isort: on

__all__ = ["check", "cluster", "data", "own", "runs", "tables"]

"""Data-efficient action recognition: every table of four papers, from videos, by one workflow."""

__version__ = "0.1.0"

"""`python -m pipeline STAGE`: every step of the workflow, as Snakemake runs it, by hand."""

from __future__ import annotations

import os
import sys

from pipeline.cli.options import (
    app,
    cluster_app,
)
from pipeline.errors import UserError
from pipeline.files import system_error

app.add_typer(cluster_app, name="cluster")


def main() -> None:
    """Entry point: errors that the user can mend are one line on stderr, and exit status 2."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        said = system_error(error, "the results")
        if not said or os.environ.get("PIPELINE_DEBUG"):
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""`python -m pipeline STAGE`: every step of the workflow, as Snakemake runs it, by hand."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # the working folder, into which `python -m` looks first: a queue.py there is not Python's

import locale

from pipeline.cli.options import app, cluster_app
from pipeline.errors import UserError
from pipeline.files import system_error

app.add_typer(cluster_app, name="cluster")


def use_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale says another encoding: in files, output and names of files.

    The processes that this one starts have the mode, too.
    """
    os.environ["PYTHONUTF8"] = "1"
    if not sys.flags.utf8_mode and locale.getencoding().lower().replace("-", "") != "utf8":
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
    use_utf8()
    main()

"""The command `batchnorm`, also `python -m batchnorm`; without its extra, how to get it."""

from __future__ import annotations

import sys

NEEDS = ("rich", "typer")  # the extra `cli`


def main() -> None:
    """Runs the command line, the entry point of the installed `batchnorm`."""
    try:
        from batchnorm.cli import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in NEEDS:
            raise
        sys.exit(
            f"batchnorm: the command needs {missing}, which is not installed. "
            "Run: pip install 'batchnorm[cli]'"
        )
    app()


if __name__ == "__main__":
    main()

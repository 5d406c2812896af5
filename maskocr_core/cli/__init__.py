"""The command line. Each module here registers its commands in the order of the imports below, which is that of `--help`.

Stage commands take their flags from the stages' signatures; nothing heavy is imported for `--help`.
"""

from __future__ import annotations

import errno
import sys

from maskocr_core.cli.app import app
from maskocr_core.cli.stage_commands import flag
from maskocr_core.escaping import spelled_out

from maskocr_core.cli import pipelines, data, models, planning, operate, machine  # isort: skip  # noqa: F401  in the order of `--help`

_LAYOUT = "\n\t"
__all__ = ["app", "flag", "main"]


def main() -> None:
    """Entry point: a mistake of the user ends in one sentence and exit code 2, not in a traceback."""
    try:
        app()
    except ValueError as error:
        _fail(str(error), 2)
    except RuntimeError as error:
        _fail(str(error), 1)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail(
                f"the disk is full ({error.filename or 'while writing'}): free space and run again; finished work is kept",
                1,
            )
        if error.errno == errno.EADDRINUSE:
            _fail(f"the port is in use ({error}): choose another", 1)
        _fail(f"{error} (a file is damaged or cannot be reached)", 1)
    except Exception as error:
        if not type(error).__module__.startswith("mlflow"):
            raise
        _fail(f"MLflow refuses or does not answer: {error}", 1)


def _fail(message: str, code: int) -> None:
    # A sentence may quote what stands in somebody's file, and a terminal obeys control characters.
    print(f"maskocr: {spelled_out(message, _LAYOUT)}", file=sys.stderr)
    sys.exit(code)

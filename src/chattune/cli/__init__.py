"""The command line: one short function for each command, which parses, calls and prints.

Each command imports what it needs in its body, so that `chattune --help` does not load torch.
"""

import errno
import logging
import os
import sys
import warnings

import typer

from chattune.cli import making, measuring, using  # noqa: F401  # they define the commands
from chattune.cli.app import app
from chattune.errors import ChattuneError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; chattune's own errors print their message and set the exit code."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if "OMP_WAIT_POLICY" not in os.environ:
        # OpenMP reads it when PyTorch is loaded. By default, threads that wait for each other keep
        # their core busy for about a millisecond. If another program uses that core, the thread
        # that they wait for does not run, and a reply takes 30 times as long (docs/performance.md).
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logger = logging.getLogger("chattune")
    logger.handlers = [logging.StreamHandler(sys.stderr)]
    logger.setLevel(logging.INFO)
    try:
        app()
    except ChattuneError as error:
        for line in str(error).splitlines():
            typer.echo(f"chattune: {line}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        typer.echo(
            f"chattune: {error.filename}: too long to be a path or a name; shorten it", err=True
        )
        sys.exit(2)

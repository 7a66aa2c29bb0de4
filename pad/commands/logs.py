"""What a command says besides its results: the library's log on standard error, as much as is asked for."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

from pad.errors import printable

_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}


class _StandardError(logging.Handler):
    """One line for each record, on what is standard error at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(self.format(record)), file=sys.stderr, flush=True)


_HANDLER = _StandardError()


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """-v and -q, which exclude each other."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say what is being done; -vv: with times and places",
    )
    group.add_argument(
        "-q", "--quiet", action="store_true", help="no notes and no progress bars: results and errors alone"
    )


def set_up(arguments: argparse.Namespace) -> None:
    """Sends the library's log to standard error, and silences what is noise there, for the whole process."""
    level = -1 if arguments.quiet else min(2, arguments.verbose)
    log = logging.getLogger("pad")
    log.setLevel(_LEVELS[level])
    _HANDLER.setFormatter(
        logging.Formatter("%(asctime)s %(name)s: %(message)s" if level == 2 else "%(message)s")
    )
    if _HANDLER not in log.handlers:
        log.addHandler(_HANDLER)
    if arguments.quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # Images are checked where they are read, and refused by name; Pillow's own remarks add nothing to that.
    warnings.filterwarnings("ignore", message=r"Image size .* exceeds limit", category=RuntimeWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

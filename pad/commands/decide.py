"""`pad watch proposals | accept | reject | rollback`: decisions beside a running watcher. No tensors are
needed."""

from __future__ import annotations

import argparse
import time

from pad.errors import PadError, printable
from pad.watching.state import ACCEPTED, State

BY = "command line"
MOST_ID = 2**62


def decide(arguments: argparse.Namespace) -> int:
    """What the first word says, of the state that --state names."""
    word, state = arguments.model, State(arguments.state)
    if word in ("proposals", "rollback") and arguments.source is not None:
        raise PadError(f"pad watch {word} takes no '{arguments.source}'; the state is named with --state DIR")
    if arguments.name is not None and word != "reject":
        raise PadError("--name goes with `pad watch reject ID`")
    if word == "proposals":
        _list(state)
    elif word == "rollback":
        _tell_version(state.rollback(BY).normals)
    elif word == "accept":
        if state.fact("adopt") == "never":
            raise PadError(
                f"{arguments.state}: its watcher runs with --adopt never: nothing is accepted there"
            )
        _tell_version(state.accept(_number(arguments.source, word), BY).normals)
    else:
        number, name = _number(arguments.source, word), arguments.name or ""
        state.reject(number, BY, name)
        print(f"proposal {number} is remembered as an anomaly" + (f": {printable(name)}" if name else ""))
    return 0


def _number(text: str | None, word: str) -> int:
    if text is None or not text.isdecimal() or int(text[:20]) > MOST_ID:
        raise PadError(f"pad watch {word} takes the id of a proposal, as `pad watch proposals` lists them")
    return int(text)


def _list(state: State) -> None:
    """A line each, the id first."""
    version = state.version()
    for proposal in state.proposals():
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(proposal.time))
        status = (
            "normal" if proposal.status == ACCEPTED and proposal.id in version.normals else proposal.status
        )
        drawn = state.montage(proposal.id)
        told = [str(proposal.id), status, f"{proposal.pictures} pictures", when, proposal.name]
        print(printable("  ".join([*filter(None, told), *([str(drawn)] if drawn.is_file() else [])])))


def _tell_version(normals: tuple[int, ...]) -> None:
    added = (
        f", and proposal{'s' if len(normals) > 1 else ''} {', '.join(map(str, normals))}" if normals else ""
    )
    print(f"normal is what the model was trained on{added}")

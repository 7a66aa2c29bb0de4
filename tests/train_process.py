"""Runs `pad train ...` in a process of its own that can be killed before any file operation, and in the midst
of writing a file.

Processes are forked from a server that has imported torch once, which saves seconds for each.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

CONTEXT = multiprocessing.get_context("forkserver")
# The server is `zoo_process`'s, too: nothing here may import huggingface_hub, which reads the environment.
CONTEXT.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",
        "torchvision.utils",
        "scipy.special",
        "pad.commands.parser",
        "pad.commands.train",
    ]
)
KILLED = 77  # exit status of a process that this module killed

Operation = tuple[str, str]  # what, and the last part of the name it is done to

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
_SYNCED_FOLDER, _SYNCED_LOG = "fsync-folder", "fsync-log"


@dataclass(frozen=True)
class Done:
    """A process that has ended, and the file operations that it did or, the last one, was about to do."""

    status: int
    out: str
    err: str
    operations: list[Operation]

    def places(self) -> list[int]:
        """The numbers of the operations before which a kill leaves something of its own on the disk: all but
        what only makes others stay."""
        return [i for i, (what, _) in enumerate(self.operations) if what not in (_SYNCED_FOLDER, _SYNCED_LOG)]


def train(
    *words: object,
    folder: Path,
    before: int | None = None,
    number: int = signal.SIGKILL,
    file_limit: int = 0,
) -> Done:
    """`pad train WORDS --out FOLDER --device cpu`.

    before: the number of the file operation under `folder`'s parent, from 0, before which signal `number`
        comes. Of a file that is about to be synced only the first half has been written then.
    file_limit: no file may grow above so many bytes.
    """
    arguments = ["train", *map(str, words), "--out", str(folder), "--device", "cpu"]
    return run(_main, arguments, folder=folder.parent, before=before, number=number, file_limit=file_limit)


def run(
    function: Callable[..., int | None],
    *arguments: Any,
    folder: Path,
    before: int | None = None,
    number: int = signal.SIGKILL,
    file_limit: int = 0,
) -> Done:
    """`function(*arguments)` likewise, for file operations under `folder`."""
    notes = folder.parent / f"{folder.name}-notes"
    notes.mkdir(parents=True, exist_ok=True)
    process = CONTEXT.Process(
        target=_child, args=(function, arguments, folder, notes, before, number, file_limit)
    )
    process.start()
    process.join(200)
    assert process.exitcode is not None, "it hangs"
    out, err, operations = ((notes / name).read_text() for name in ("out", "err", "operations"))
    assert "Traceback" not in err, err
    listed = [(what, name) for what, _, name in (line.partition(" ") for line in operations.splitlines())]
    return Done(process.exitcode, out, err, listed)


def _child(
    function: Callable[..., int | None],
    arguments: tuple[Any, ...],
    folder: Path,
    notes: Path,
    before: int | None,
    number: int,
    file_limit: int,
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        os.dup2(os.open(notes / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    tqdm.set_lock(threading.RLock())  # its own is shared by processes, and left behind by one that is killed
    log = os.open(notes / "operations", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    count = 0

    def operation(what: str, name: str, tear: int | None = None) -> None:
        nonlocal count
        if not file_limit:
            os.write(log, f"{what} {name}\n".encode())
        count += 1
        if before is not None and count == before + 1:
            if number == signal.SIGKILL:
                if tear is not None:
                    os.ftruncate(tear, os.fstat(tear).st_size // 2)
                os._exit(KILLED)
            os.kill(os.getpid(), number)

    def audit(event: str, details: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(details[2], int) and details[2] & _WRITING
        if not (writes or event in _CHANGES) or not isinstance(details[0], str | bytes | os.PathLike):
            return
        path = Path(os.fsdecode(details[0]))
        if event in ("os.remove", "os.rmdir") and details[1] >= 0:  # shutil.rmtree goes by descriptors
            path = _opened(details[1]) / path
        there = os.path.lexists(path)
        if (event == "os.mkdir" and there) or (event in ("os.remove", "os.rename") and not there):
            return  # it will fail, as its caller expects
        if path.is_relative_to(folder):
            operation(event.removeprefix("os."), path.name)

    fsync = os.fsync

    def counted_fsync(descriptor: int) -> None:
        path = _opened(descriptor)
        if path.is_dir():
            operation(_SYNCED_FOLDER, path.name)
        elif path.suffix == ".jsonl":
            operation(_SYNCED_LOG, path.name)
        else:
            operation("fsync", path.name, tear=descriptor)
        fsync(descriptor)

    os.fsync = counted_fsync
    sys.addaudithook(audit)
    sys.exit(function(*arguments))


def _opened(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _main(arguments: list[str]) -> int:
    from pad.commands.parser import main

    return main(arguments)

"""Commands in processes of their own, as a shell starts them, without importing torch anew for each.

A server that has imported what commands import forks for each: its process has the arguments, streams,
folder and environment asked for, takes signals, and has an exit status, at a fraction of the cost. What is
read from the environment while something is imported (the hub's addresses, the number of threads, which is 1)
cannot be asked for here; `zoo_process` does that. Each command is started by a fresh interpreter, too, in one
test at least.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent
IMPORTED = (
    "torch._dynamo", "torchvision.utils", "timm", "scipy.special", "scipy.stats", "sklearn.covariance",
    "pad.commands.build", "pad.commands.calibrate", "pad.commands.clean", "pad.commands.decide",
    "pad.commands.evaluate", "pad.commands.parser", "pad.commands.train", "pad.commands.watch",
    "pad.commands.zoo", "pad.registry.build", "pad.showing.report",
)  # fmt: skip


class Process:
    """`python WORDS` while it runs, by the names that `subprocess.Popen` has.

    Args:
        words: a script and its arguments, or `-m` and a module and its arguments.
        env: its whole environment; None: as here.
        cwd: where it runs; None: here.
        stdin, stdout, stderr: `subprocess.PIPE`, `subprocess.DEVNULL`, or a file that is open.
        text: whether pipes carry text.
    """

    def __init__(
        self,
        words: list[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] = subprocess.DEVNULL,
        stderr: int | IO[Any] = subprocess.DEVNULL,
        text: bool = False,
    ) -> None:
        self.args, self.returncode = words, None
        with contextlib.ExitStack() as theirs:
            self.stdin, a = _stream(stdin, 0, text, theirs)
            self.stdout, b = _stream(stdout, 1, text, theirs)
            self.stderr, c = _stream(stderr, 1, text, theirs)
            self._said, far = socket.socketpair()
            theirs.enter_context(far)
            socket.send_fds(_server(), [b"."], [far.fileno(), a, b, c])
        self._said.sendall(
            json.dumps([words, str(cwd or Path.cwd()), dict(env or os.environ)]).encode() + b"\n"
        )
        self._lines = self._said.makefile()
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        if self.returncode is None and select.select([self._said], [], [], 0)[0]:
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._said.close()
        return self.returncode

    def wait(self, timeout: float = 250) -> int:
        """Its exit status, once it has ended."""
        if self.returncode is None and not select.select([self._said], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        """Sends it a signal, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    words: list[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: bytes = b"",
    timeout: float = 250,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """`python WORDS`, as `subprocess.run` with `capture_output=True, text=True`; `fresh`: by an interpreter
    that imports all itself."""
    if fresh:
        return subprocess.run(
            [sys.executable, *words], env=env, cwd=cwd, input=input.decode(), timeout=timeout,
            capture_output=True, text=True,
        )  # fmt: skip
    with contextlib.ExitStack() as files:
        given, out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(input)
        given.seek(0)
        process = Process(words, env=env, cwd=cwd, stdin=given, stdout=out, stderr=err)
        try:
            status = process.wait(timeout)
        except BaseException:
            process.kill()
            raise
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(io.TextIOWrapper(file, encoding="utf-8").read())
        return subprocess.CompletedProcess(words, status, *said)


def _stream(
    asked: int | IO[Any], end: int, text: bool, theirs: contextlib.ExitStack
) -> tuple[IO[Any] | None, int]:
    """(our end of a pipe, the descriptor of the other), which is closed here once it is theirs."""
    if not isinstance(asked, int):
        return None, asked.fileno()
    if asked == subprocess.DEVNULL:
        descriptor = os.open(os.devnull, os.O_RDWR)
        theirs.callback(os.close, descriptor)
        return None, descriptor
    assert asked == subprocess.PIPE
    pipe = os.pipe()
    theirs.callback(os.close, pipe[end])
    return os.fdopen(pipe[1 - end], ("w" if end == 0 else "r") + ("" if text else "b")), pipe[end]


# The server, one for a process that tests

_running: list[tuple[subprocess.Popen[bytes], socket.socket]] = []


def _server() -> socket.socket:
    if not _running:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], env=environment, pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        _running.append((process, ours))
    return _running[0][1]


def stop() -> None:
    """Ends the server, if there is one."""
    while _running:
        process, ours = _running.pop()
        ours.close()
        process.wait(60)


def _serve(control: socket.socket) -> list[str]:
    """Forks for each that asks. Returns in the forks alone: the words to run."""
    while True:
        asked, descriptors, _, _ = socket.recv_fds(control, 1, 4)
        if not asked:
            while _ended(0):
                pass
            sys.exit()
        if os.fork() == 0:
            control.close()
            return _supervise(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        while _ended(os.WNOHANG):
            pass


def _ended(how: int) -> bool:
    try:
        return os.waitpid(-1, how)[0] != 0
    except ChildProcessError:
        return False


def _supervise(descriptor: int, *streams: int) -> list[str]:
    """Forks once more, and tells of that process's number and end. Returns in that process alone."""
    said = socket.socket(fileno=descriptor)
    with said.makefile() as lines:
        words, cwd, env = json.loads(lines.readline())
    child = os.fork()
    if child:
        for stream in streams:
            os.close(stream)
        said.sendall(b"%d\n" % child)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(BrokenPipeError):
            said.sendall(b"%d\n" % status)
        os._exit(0)
    said.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    return words


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    sys.argv = _serve(socket.socket(fileno=int(sys.argv[1])))
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        sys.path[0] = str(Path.cwd())
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")

"""Runs the program many times over without starting Python and importing torch each time.

A campaign's worker imports everything once, and then forks: each run is a process of its own, which can be
killed like any other, and starts in milliseconds.
"""

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_POLL_S = 0.005


class Ended(NamedTuple):
    """How a run ended.

    Attributes:
        code: What it exited with; negative for the signal that ended it.
        output: What it printed, standard output and errors together.
        seconds: How long it took.
        peak_mb: The most memory it held, less what it had from its worker when it began.
        hung: Whether it had to be ended because it was not over in time.
    """

    code: int
    output: str
    seconds: float
    peak_mb: float
    hung: bool

    def errors(self) -> list[str]:
        """The program's error sentences."""
        return [line for line in self.output.splitlines() if "presel: error:" in line or ": error: " in line]

    def faults(self, *codes: int) -> list[str]:
        """What no input, server or damage may bring about.

        Args:
            codes: The exit codes that are right.
        """
        found = []
        if self.hung:
            found.append(f"not over after {self.seconds:.0f} s")
        elif self.code not in codes:
            found.append(f"exit code {self.code}")
        if "Traceback (most recent call last)" in self.output:
            found.append("traceback")
        if control := re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", self.output):
            found.append(f"control character {control[0]!r} in the output")
        if self.code == 2 and not self.hung and len(self.errors()) != 1:
            found.append(f"{len(self.errors())} error sentences")
        return found


class Run:
    """A run of the program that has begun."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        """Starts `presel ARGUMENTS` in a folder, which keeps its output as `output.txt`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._output = folder / "output.txt"
        self._started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _child(folder, self._output, arguments, environment)
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        self._before_mb = pages * resource.getpagesize() / 1e6

    def output(self) -> str:
        """What it has printed up to now."""
        try:
            return self._output.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def polls(self, seconds: float) -> Iterator[None]:
        """Comes back every few milliseconds for so long, as long as the run lasts."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.over():
            time.sleep(_POLL_S)
            yield

    def over(self) -> bool:
        """Whether the run has ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> Ended:
        """Ends it by SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        return self._reaped(hung=False)

    def end(self, deadline_s: float) -> Ended:
        """Waits for its end, or ends it."""
        for _ in self.polls(deadline_s):
            pass
        hung = not self.over()
        if hung:
            os.kill(self.pid, signal.SIGKILL)
        return self._reaped(hung)

    def _reaped(self, hung: bool) -> Ended:
        _, status, usage = os.wait4(self.pid, 0)
        seconds = time.monotonic() - self._started
        peak_mb = max(0.0, usage.ru_maxrss * 1024 / 1e6 - self._before_mb)
        return Ended(os.waitstatus_to_exitcode(status), self.output(), seconds, peak_mb, hung)


def presel(folder: Path, *arguments: str, deadline_s: float = 300, **environment: str) -> Ended:
    """Runs `presel ARGUMENTS` in a folder to its end."""
    return Run(folder, *arguments, **environment).end(deadline_s)


def preload() -> None:
    """Imports whatever a run may import."""
    import faiss
    import matplotlib.pyplot
    import peft
    import pytorch_lightning
    import sklearn.cluster
    import transformers.models.clip
    import transformers.models.dinov2
    import transformers.models.llava

    import presel.commands.doctor
    import presel.commands.execution
    import presel.commands.hydra_app
    import presel.models.fine_tune

    del faiss, matplotlib, peft, pytorch_lightning, sklearn, transformers, presel


def _child(folder: Path, output: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """Becomes the program; never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, to in ((nothing, 0), (target, 1), (target, 2)):
            os.dup2(descriptor, to)
        os.environ.update(environment)
        sys.argv = ["presel", *arguments]
        from presel.cli import main

        code = main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

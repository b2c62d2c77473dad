"""Starts several processes by torchrun and waits for them.

They are children of the one process that runs the pipeline, never copies of it: a copy would start a sweep of
its own.
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from presel.errors import PreselError
from presel.models.hardware import Hardware, processes_in_all, processes_on_node
from presel.selection.threads import cpu_count

# What a process ends with where the user can mend the mistake; its last line says how.
MENDABLE = 2
# Every node reports its own.
_FIRST_FAILURE = re.compile(
    r"Root Cause.*?time\s*:\s*(\S+).*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL
)
# A process that raised an exception may only have missed one that ended in the same second.
_EXCEPTION = 1


def torchrun(module: str, folder: Path, hardware: Hardware) -> None:
    """Runs a module in as many processes as the hardware has devices, on all its nodes.

    The processes read from a pipe that ends when this process does, however it does, and then end too.

    Args:
        module: Run as `python -m`, with `folder` as its argument.
        folder: Where it finds its task. Each process writes what it prints to `rank-<n>.log` there.
        hardware: Says how many processes there are.

    Raises:
        PreselError: If one of them fails; the others are ended.
    """
    here = processes_on_node(hardware)
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={here}"]
    if hardware.nodes == 1:
        run += ["--standalone", "--local-addr=127.0.0.1"]
    else:
        # The nodes meet here. This machine need not be one of them: `salloc` may be called on a login node.
        meeting = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        run += [f"--nnodes={hardware.nodes}", "--rdzv-backend=c10d", "--rdzv-conf=is_host=false"]
        run += [f"--rdzv-endpoint={socket.gethostname()}:{meeting.port}"]
        run = [*hardware.node_command, *run]
    environment = {"OMP_NUM_THREADS": str(max(1, cpu_count() // here))} | os.environ
    command = [*run, "-m", module, str(folder)]
    log = folder / "torchrun.log"
    with log.open("w") as output:
        try:
            child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=output)
        except OSError as error:
            raise PreselError(
                f"trainer.node_command: {run[0]} cannot be started ({error.strerror}); name a command that "
                "starts another one on each node"
            ) from error
    # Leaving the block closes the pipe, and waits.
    with child:
        try:
            code = child.wait()
        finally:
            child.terminate()
    if code:
        raise PreselError(what_failed(log, code, folder, processes_in_all(hardware)))


def what_failed(log: Path, code: int, folder: Path, processes: int) -> str:
    """Says which process failed first, and how.

    Args:
        log: What torchrun printed, on all nodes.
        code: What it ended with.
        folder: Where the processes' own logs are.
        processes: How many there were.
    """
    again = "the same command goes on where it stopped"
    failures = [
        (time, int(code) == _EXCEPTION, int(rank), int(code))
        for time, rank, code in _FIRST_FAILURE.findall(log.read_text(errors="replace"))
    ]
    if not failures:
        return f"torchrun ended with exit status {code} ({_last_line(log)}); its output is in {log}; {again}"
    *_, rank, code = min(failures)
    own = folder / f"rank-{rank}.log"
    last = _last_line(own)
    if code == MENDABLE:
        return last
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
    return f"process {rank} of {processes} {how} ({last}); its output is in {own}; {again}"


def _last_line(file: Path) -> str:
    text = file.read_text(errors="replace") if file.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"

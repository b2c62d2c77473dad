"""Starts several processes by torchrun and waits for them.

They are children of the one process that runs the pipeline. They never run its command again, which would
start another sweep.
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from presel.errors import PreselError
from presel.models.hardware import Hardware, processes_per_node, total_processes
from presel.selection.threads import cpu_count

# Exit status of a process for a mistake that the user can correct; the log's last line says how.
USER_ERROR = 2
# torchrun's report of the process that failed first, on each node.
_FIRST_FAILURE = re.compile(
    r"Root Cause.*?time\s*:\s*(\S+).*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL
)
# Exit status of a process with an uncaught exception, which may be due to a peer that died just before.
_EXCEPTION = 1


def torchrun(module: str, folder: Path, hardware: Hardware) -> None:
    """Runs a module in one process per device, on all nodes.

    The processes read from a pipe that is closed when this process exits, for whatever reason, and then exit
    too.

    Args:
        module: Run as `python -m`, with `folder` as its argument.
        folder: Holds the task. Each process writes its output to `rank-<n>.log` there.
        hardware: Nodes, and devices on each.

    Raises:
        PreselError: If one of them fails; the others are terminated.
    """
    here = processes_per_node(hardware)
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={here}"]
    if hardware.nodes == 1:
        run += ["--standalone", "--local-addr=127.0.0.1"]
    else:
        # The nodes' rendezvous. This machine need not be one of them: `salloc` may be called on a login node.
        rendezvous = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        run += [f"--nnodes={hardware.nodes}", "--rdzv-backend=c10d", "--rdzv-conf=is_host=false"]
        run += [f"--rdzv-endpoint={socket.gethostname()}:{rendezvous.port}"]
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
    # Leaving the block closes the pipe and waits for the child.
    with child:
        try:
            code = child.wait()
        finally:
            child.terminate()
    if code:
        raise PreselError(failure_message(log, code, folder, total_processes(hardware)))


def failure_message(log: Path, code: int, folder: Path, processes: int) -> str:
    """Says which process failed first, and how.

    Args:
        log: torchrun's output on all nodes.
        code: torchrun's exit status.
        folder: Holds the log of each process.
        processes: Number of processes.
    """
    again = "the same command continues where it stopped"
    failures = [
        (time, int(code) == _EXCEPTION, int(rank), int(code))
        for time, rank, code in _FIRST_FAILURE.findall(log.read_text(errors="replace"))
    ]
    if not failures:
        return f"torchrun ended with exit status {code} ({_last_line(log)}); its output is in {log}; {again}"
    *_, rank, code = min(failures)
    own = folder / f"rank-{rank}.log"
    last = _last_line(own)
    if code == USER_ERROR:
        return last
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
    return f"process {rank} of {processes} {how} ({last}); its output is in {own}; {again}"


def _last_line(file: Path) -> str:
    text = file.read_text(errors="replace") if file.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"

"""One of several processes that compute a stage: `torchrun … -m presel.distributed.worker FOLDER`."""

import logging
import os
import stat
import sys
import threading
from pathlib import Path

from presel.console import console, log_to, show_messages, silence_libraries


def main() -> int:
    """Computes this process's share of the stage that the folder describes.

    Returns:
        Exit status: 0 for success, 2 for a mistake that the user can correct.
    """
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if rank == 0:
        # Its messages and progress are shown where the run's are.
        console.file = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        show_messages()
    with (folder / f"rank-{rank}.log").open("w") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
        os.dup2(log.fileno(), sys.stdout.fileno())
    log_to(logging.StreamHandler())
    silence_libraries()
    # Imported once the log is open: they take seconds, and may fail.
    from presel.console.escaping import visible
    from presel.distributed.launch import USER_ERROR
    from presel.distributed.stage import work_on
    from presel.errors import PreselError

    try:
        work_on(folder, rank, int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    except PreselError as error:
        # On one line: the user is shown the log's last one.
        print(visible(str(error)), file=sys.stderr)
        return USER_ERROR
    return 0


def _exit_with_parent() -> None:
    """Exits when the process that started torchrun has exited, which closes its end of the pipe.

    Launchers for several nodes may give some of their processes no pipe.
    """
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        os.read(0, 1)
        os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without cleanup: threads of torch's libraries may abort a process at its regular exit.
    os._exit(code)

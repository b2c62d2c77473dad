"""One of several processes that work on a stage: `torchrun … -m presel.distributed.worker FOLDER`."""

import os
import stat
import sys
import threading
from pathlib import Path

from presel.console.quiet import silence_libraries


def main() -> int:
    """Works on the stage that the folder describes.

    Returns:
        0 if all went well, 2 for a mistake the user can mend.
    """
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with (folder / f"rank-{rank}.log").open("w") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
        # The first one shows its progress, where somebody looks.
        if rank or not sys.stdout.isatty():
            os.dup2(log.fileno(), sys.stdout.fileno())
    silence_libraries()
    # Here, because they take seconds and may fail, which the log then says.
    from presel.console.escaping import visible
    from presel.distributed.launch import MENDABLE
    from presel.distributed.stage import work_in
    from presel.errors import PreselError

    try:
        work_in(folder, rank, int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    except PreselError as error:
        # On one line, since the last one is what the user is told.
        print(visible(str(error)), file=sys.stderr)
        return MENDABLE
    return 0


def _end_with_parent() -> None:
    """Ends this process when the one that started torchrun has ended, which closes its end of the pipe.

    Programs that start others on several nodes may give some of them no pipe.
    """
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        os.read(0, 1)
        os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of torch's libraries may abort a process that ends the long way, when all is written.
    os._exit(code)

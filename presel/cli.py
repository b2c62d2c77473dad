"""The command line: `presel run` and its companions."""

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from types import TracebackType

COMMANDS = {
    "run": "choose images, buy their instructions, tune, evaluate (Hydra; see `presel run --help`)",
    "doctor": "check a pool: faults, duplicates, and what a run on it would take and cost",
    "report": "compare finished runs: tables, intervals, figures, one page",
    "export": "write what a run chose as training data for LLaVA, LLaMA-Factory or Hugging Face datasets",
    "diff": "compare two selections of one pool",
    "assemble": "put a LLaVA together from a language model, a CLIP tower and a pretrained projector",
    "store": "list, verify or clean stored results",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the program `presel`.

    Returns:
        0 if all went well, 2 for a mistake the user can mend, 3 where the run waits for instructions that
        people or a service write meanwhile, 130 after Ctrl-C, 143 after SIGTERM.
    """
    sys.excepthook = _print_traceback
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    listing = "\n".join(f"  {name:<10}{purpose}" for name, purpose in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="presel",
        description="Pre-instruction data selection: choose the images worth instructing, first.",
        epilog=f"commands:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of the commands below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="…", help="its own arguments")
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser.parse_args(arguments[:1] or ["--help"])
    rest = arguments[1:]
    if chosen.command == "run":
        return _run(rest)
    # Imported when it is called, since torch and others take seconds.
    return _told(resolve_name(f"presel.commands.{chosen.command}:main"), rest)


def _run(overrides: list[str]) -> int:
    from presel.console.quiet import silence_libraries

    silence_libraries()
    from hydra import main as hydra_main
    from omegaconf import DictConfig

    from presel.console import print_error
    from presel.errors import Paused, PreselError
    from presel.instructions.secrets import refuse_keys
    from presel.settings.errors import MISTAKES, UNREADABLE, explain
    from presel.settings.overrides import check_overrides
    from presel.settings.paths import config_folder
    from presel.settings.schema import register

    def task(config: DictConfig) -> float | None:
        from presel.commands.run import run

        return run(config, overrides)

    register()
    # Otherwise Hydra prints errors its own way and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # A strategy of one's own may lie in the working directory, as with `python -m`.
    sys.path.append(str(Path.cwd()))
    # Hydra refuses overrides on both sides of a flag.
    sys.argv = ["presel run", *sorted(overrides, key=lambda one: one not in ("-m", "--multirun"))]
    try:
        refuse_keys(overrides)
        check_overrides(overrides)
        hydra_main(config_path=str(config_folder()), config_name="config", version_base="1.3")(task)()
    except Paused as pause:
        print_error(f"paused: {pause}")
        return 3
    except (PreselError, *MISTAKES) as error:
        print_error(f"error: {explain(error, overrides)}")
        return 2
    except UNREADABLE as error:
        if _raised_by(error, "hydra", "omegaconf", "yaml", "codecs"):
            print_error(f"error: {explain(error)}")
            return 2
        if not isinstance(error, OSError):
            raise
        return _unusable_path(error)
    except RuntimeError as error:
        if not _raised_by(error, "submitit"):
            raise
        # What the job printed would follow; it is in its folder.
        said = " ".join(str(error).partition("\nError stream")[0].split())
        print_error(
            f"error: hydra/launcher: {said}; what jobs ask for is set by hydra.launcher.*, what they "
            "print is in .submitit in the sweep's folder, and the same command goes on where it stopped"
        )
        return 2
    except KeyboardInterrupt:
        print_error("interrupted; the same command goes on where it stopped")
        return 130
    return 0


def _told(command: Callable[[Sequence[str]], int], arguments: list[str]) -> int:
    """Runs a command, and tells the user of a mistake in one sentence."""
    from presel.console import print_error
    from presel.console.quiet import silence_libraries
    from presel.errors import PreselError

    silence_libraries()
    try:
        return command(arguments)
    except PreselError as error:
        print_error(f"error: {error}")
        return 2
    except OSError as error:
        return _unusable_path(error)
    except KeyboardInterrupt:
        print_error("interrupted")
        return 130


def _terminate(*_: object) -> None:
    """Leaves at SIGTERM, once what is open is closed; a second one ends the process at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Not by `print`, which the signal may have interrupted.
    os.write(sys.stderr.fileno(), b"presel: terminated; the same command goes on where it stopped\n")
    sys.exit(128 + signal.SIGTERM)


def _unusable_path(error: OSError) -> int:
    if error.filename is None:
        raise error
    from presel.console import print_error

    print_error(f"error: {error.filename}: {error.strerror}; check the path")
    return 2


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a fault of the program as Python does, but with control characters written out.

    Ctrl-C while libraries are still being imported is none.
    """
    if issubclass(kind, KeyboardInterrupt):
        print("presel: interrupted", file=sys.stderr)
        return
    from presel.console.escaping import visible

    for line in "".join(traceback.format_exception(kind, error, trace)).split("\n"):
        print(visible(line), file=sys.stderr)


def _raised_by(error: BaseException, *packages: str) -> bool:
    """Whether an error comes from the code of one of these packages."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"]).partition(".")[0] in packages

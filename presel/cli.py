"""The command line: `presel run` and its companions."""

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import InvalidStateError
from io import TextIOWrapper
from pkgutil import resolve_name
from types import TracebackType
from typing import TypeVar

from presel import __version__

Code = TypeVar("Code")

COMMANDS = {
    "run": "choose images, obtain their instructions, tune, evaluate (Hydra; see `presel run --help`)",
    "doctor": "check a pool: faults, duplicates, and what a run on it would take and cost",
    "report": "compare finished runs: tables, intervals, figures, one page",
    "view": "show what a run chose: its pool as a map, tasks, clusters, pictures, costs",
    "export": "write what a run chose as training data for TRL, LLaMA-Factory, ms-swift, LLaVA and others",
    "diff": "compare two selections of one pool",
    "assemble": "put a LLaVA together from a language model, a CLIP tower and a pretrained projector",
    "store": "list, verify or clean stored results",
}
_EXIT_CODES = """\
exit codes:
  0    success
  1    diff: the selections differ; store verify: results are damaged; doctor: the pool has faults
  2    a mistake in the settings or the data, which the message names
  3    run: paused until people or a service have written instructions; the same command continues
  130  interrupted by Ctrl-C
  141  the program that reads the output ended
  143  terminated by SIGTERM"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the program `presel`.

    Returns:
        The exit code, see `presel --help`.
    """
    sys.excepthook = _print_traceback
    threading.excepthook = _print_thread_traceback
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    # A terminal or a file may be of an encoding that lacks a character.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _after_output(_command(arguments))
    except SystemExit as end:
        raise SystemExit(_after_output(end.code)) from None


def _command(arguments: Sequence[str] | None) -> int:
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command.startswith("-"):
        _parser().parse_args([command])
    if command in COMMANDS:
        return run_reporting_errors(command, rest)
    from presel.console import print_error
    from presel.settings.options import nearest

    hint = nearest(command, list(COMMANDS))
    print_error(f"error: there is no command '{command}'{hint}; choose one of {', '.join(COMMANDS)}")
    return 2


def _parser() -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:<10}{purpose}" for name, purpose in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="presel",
        usage="presel [-h] [--version] command …",
        description="Pre-instruction data selection: choose the images worth annotating, first.",
        epilog=f"commands, each with a --help of its own:\n{listing}\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"presel {__version__}")
    return parser


def run_reporting_errors(command: str, arguments: Sequence[str]) -> int:
    """Runs a command, and reports a mistake of the user as one line.

    Returns:
        The exit code.
    """
    from presel.console import print_error, silence_libraries
    from presel.errors import Paused, PreselError

    silence_libraries()
    try:
        # Imported when it is called, since pandas, Hydra and others take a second.
        code: int = resolve_name(f"presel.commands.{command}:main")(arguments)
        return code
    except Paused as pause:
        print_error(f"paused: {pause}")
        return 3
    except PreselError as error:
        print_error(f"error: {error}")
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print_error(f"error: {error.filename}: {error.strerror}; check the path")
        return 2
    except KeyboardInterrupt:
        print_error("interrupted; the same command continues where it stopped")
        return 128 + signal.SIGINT


def _after_output(code: Code) -> Code | int:
    """The exit code once all that was printed is written, or where that fails, the code for it."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:
        from presel.console.terminal import output_failed

        return output_failed(error)
    return code


def _terminate(*_: object) -> None:
    """Exits at SIGTERM, after open files are closed; a second one ends the process at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Libraries would report that their worker processes ended, which may have received the signal too.
    sys.unraisablehook = lambda _: None
    # Not by `print`, which the signal may have interrupted.
    os.write(sys.stderr.fileno(), b"presel: terminated; the same command continues where it stopped\n")
    sys.exit(128 + signal.SIGTERM)


def _print_thread_traceback(error: threading.ExceptHookArgs) -> None:
    # Raised inside `concurrent.futures` where Ctrl-C or SIGTERM ended the worker processes first.
    if not issubclass(error.exc_type, InvalidStateError) and error.exc_value is not None:
        _print_traceback(error.exc_type, error.exc_value, error.exc_traceback)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an unexpected error as Python does, but with control characters escaped."""
    # Ctrl-C while libraries are still being imported.
    if issubclass(kind, KeyboardInterrupt):
        print("presel: interrupted", file=sys.stderr)
        return
    from presel.console.escaping import visible

    lines = "".join(traceback.format_exception(kind, error, trace)).split("\n")
    print(*map(visible, lines), sep="\n", file=sys.stderr)

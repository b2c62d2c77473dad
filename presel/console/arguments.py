"""Arguments of the commands."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from presel.console.escaping import visible
from presel.console.messages import show_messages

# Options of every command: how much `show_messages` shows.
VERBOSITY = {("-v", "--verbose"): 1, ("-q", "--quiet"): -1}


class ArgumentParser(argparse.ArgumentParser):
    """Arguments of one command."""

    def __init__(self, **options: Any) -> None:
        """Takes what `argparse.ArgumentParser` does; adds `-v` and `-q`."""
        super().__init__(**options)
        shown = {1: "show details too", -1: "show nothing but results, warnings and errors"}
        group = self.add_mutually_exclusive_group()
        for names, level in VERBOSITY.items():
            group.add_argument(
                *names, dest="verbosity", action="store_const", const=level, default=0, help=shown[level]
            )

    def parse_args(self, args: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parses the arguments, and from now on shows as many messages as they ask for."""
        options = super().parse_args(args)
        show_messages(options.verbosity)
        return options

    def error(self, message: str) -> NoReturn:
        """Prints the usage and the message, which may hold file names, and exits with 2."""
        super().error(visible(message))


def whole_number(text: str) -> int:
    """Parses an argument that must be a whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)

"""`presel run`: prints its help, or starts Hydra."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Runs `presel run`.

    Args:
        arguments: Overrides and flags of Hydra, `-v` or `-q`; `--help` with or without a group.

    Raises:
        PreselError: If the configuration or the data is invalid.
    """
    # The help does without Hydra, which takes a while to import.
    if {"-h", "--help"}.isdisjoint(arguments):
        from presel.commands.hydra_app import run_app

        run_app(arguments)
    else:
        from presel.commands.run_help import run_help

        print(run_help(arguments))
    return 0

"""What the user sees: results, messages, progress and errors."""

from presel.console.arguments import ArgumentParser
from presel.console.messages import log_to, run_log, show_messages, silence_libraries
from presel.console.progress import ConsoleReporter, progress
from presel.console.terminal import console, print_error

__all__ = [
    "ArgumentParser",
    "ConsoleReporter",
    "console",
    "log_to",
    "print_error",
    "progress",
    "run_log",
    "show_messages",
    "silence_libraries",
]

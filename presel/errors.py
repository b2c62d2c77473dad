"""Errors that are no fault of the program."""


class PreselError(Exception):
    """An error that the user can correct.

    The message is one sentence that names the file, the record, the setting and the remedy; the command
    line prints it without a traceback and exits with 2.
    """


class Paused(PreselError):
    """A run that cannot continue yet, because people or a service have to write instructions.

    The message says what it waits for, and how to resume. The command line exits with 3: nothing went wrong.
    """

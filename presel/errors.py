"""What goes wrong through no fault of the program."""


class PreselError(Exception):
    """A mistake the user can mend.

    The message is one sentence that names the file, the record, the key and the remedy; the command
    line prints it without a traceback and exits with 2.
    """


class Paused(PreselError):
    """A run that waits for somebody outside it; the message says whom, and how to go on.

    The command line prints it and exits with 3: nothing went wrong.
    """

"""What goes wrong through no fault of the program."""


class PreselError(Exception):
    """A mistake the user can mend.

    The message is one sentence that names the file, the record, the key and the remedy; the command
    line prints it without a traceback and exits with 2.
    """

"""Errors that a user can fix."""


class UserError(Exception):
    """An error that the user can fix; its one line says what is wrong and what to do.

    Commands print the message and exit with status 2; with ``--debug`` they show the traceback.
    """

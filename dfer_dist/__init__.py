"""Train, compare and publish CLIP-based models of dynamic facial expressions."""

__version__ = "0.1.0"


class UserError(Exception):
    """A mistake that a person can mend: its text says in one line what is wrong and what to do.

    Commands print the text and leave with status 2; with ``--debug`` they show the traceback.
    """

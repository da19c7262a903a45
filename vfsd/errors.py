"""Errors that end the start of the daemon. Each is one plain sentence that names what to change, and an exit status.

    Failure         1  the system refuses now: a taken socket, a missing permission
    └── UsageError  2  the command line is wrong, or names something that is not there or is of the wrong kind
"""


class Failure(Exception):  # noqa: N818  (not only errors of ours)
    """One sentence for the user; `main` prints it and exits with `exit_status`."""

    exit_status = 1


class UsageError(Failure):
    """The command line can't work as it is."""

    exit_status = 2


def internal(error: BaseException) -> str:
    """The sentence for an exception nobody foresaw."""
    # Only an OSError's text has the name of the file.
    return f"internal error: {error if isinstance(error, OSError) else repr(error)}"

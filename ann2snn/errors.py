"""The one error type that users are meant to see."""


class UserError(ValueError):
    """Bad input: a flag, a file or a combination that cannot work.

    The message is one line that names the cause and the cure. Scripts print it to stderr and exit with code 2.
    """

"""The exceptions that end a command in one line: a user's mistake (exit code 2), and a run that was stopped."""


class UserError(ValueError):
    """Something the user can mend: says what came, what is allowed and what to type next."""


class Interrupted(Exception):
    """The run was stopped by the user or a scheduler after a whole step; its state is saved.

    code: exit code of the command, 128 + the number of SIGINT or SIGTERM.
    """

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code


def first_line(error: Exception) -> str:
    """The first line of an error's message; its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__

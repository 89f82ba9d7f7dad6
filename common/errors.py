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

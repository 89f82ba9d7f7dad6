"""The one exception that is shown to a user as a single line and ends a command with exit code 2."""


class UserError(ValueError):
    """Something the user can mend: says what came, what is allowed and what to type next."""

"""The exceptions that end a command with one line instead of a traceback."""


class UserError(ValueError):
    """Bad input: one line that names the key or file, what it was and what is allowed. `metarun` prints it and exits with 2."""


class TrainingError(ArithmeticError):
    """Training cannot go on: one line with the step, what is left and what to try. `metarun` prints it and exits with 1."""

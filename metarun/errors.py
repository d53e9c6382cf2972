"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """Bad input: one line that names the key or file, what it was and what is allowed. `metarun` prints it and exits with 2."""

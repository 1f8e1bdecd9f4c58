"""The error of this package."""


class DatasetError(ValueError):
    """A data set cannot be used.

    The message names the file or the argument, what was expected, what was found, and what to do.
    """

"""The error and the warnings of this room."""


class DatasetError(ValueError):
    """A data set cannot be used.

    The message names the file or the argument, what was expected, what was found, and what to do.
    """


class DataOrderWarning(UserWarning):
    """The data continues at the saved position, but not with the batches that would have followed."""


class ReadAgainWarning(UserWarning):
    """Data that cannot go to its position is read again up to there."""

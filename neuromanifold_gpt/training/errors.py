"""What a user of ``train.py`` can get wrong."""


class ConfigError(ValueError):
    """A flag, or the combination of flags and a checkpoint, cannot work. The message says what to do."""

"""The GPT that ``train.py`` trains: GPT-2 in plain torch."""

from neuromanifold_gpt.gpt.model import GPT, GPTConfig, GPTConfigError, GPTInputError

__all__ = ["GPT", "GPTConfig", "GPTConfigError", "GPTInputError"]

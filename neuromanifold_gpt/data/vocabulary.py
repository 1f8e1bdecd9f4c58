"""What the token ids of a corpus stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuromanifold_gpt.data.errors import DatasetError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Vocabulary(ABC):
    """Token ids 0 .. ``size`` - 1 and the text that they stand for."""

    size: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Turn text into token ids; raises `DatasetError` where that is impossible."""

    @abstractmethod
    def _decode(self, ids: Sequence[int]) -> str:
        """Turn ids that are known to be in range into text."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Describe the vocabulary in full, in JSON types: equal for equal vocabularies, for digests."""

    def decode(self, ids: Sequence[int]) -> str:
        """Turn token ids into text.

        Ids that stand for no text, such as those that pad a vocabulary to a round size, become U+FFFD.

        Raises:
            DatasetError: an id is outside 0 .. ``size`` - 1.
        """
        for position, token_id in enumerate(ids):
            if not 0 <= token_id < self.size:
                raise DatasetError(
                    f"token id at position {position}: expected 0 .. {self.size - 1}, found {token_id}; decode with "
                    "the vocabulary of the corpus that the ids come from"
                )
        return self._decode(ids)


@dataclass(frozen=True)
class ByteVocabulary(Vocabulary):
    """Each byte of UTF-8 text is a token; a ``size`` above 256 is padding."""

    size: int = 256

    def __post_init__(self) -> None:
        if self.size < 256:
            raise DatasetError(
                f"vocab_size: expected at least 256, because the corpus is made of bytes, found {self.size}; leave "
                "vocab_size away, or give 256 or more"
            )

    def encode(self, text: str) -> list[int]:
        """Turn text into its UTF-8 bytes."""
        try:
            # Command lines and file names carry bytes that are not UTF-8 as surrogates: back to those bytes.
            return list(text.encode("utf-8", errors="surrogateescape"))
        except UnicodeEncodeError as error:
            raise DatasetError(
                f"cannot encode text: expected Unicode, found half a surrogate pair at position {error.start}; leave "
                "it out"
            ) from error

    def _decode(self, ids: Sequence[int]) -> str:
        # 0xFF occurs nowhere in UTF-8: it becomes U+FFFD, and so does each id of the padding.
        return bytes(min(token_id, 0xFF) for token_id in ids).decode("utf-8", errors="replace")

    def description(self) -> dict[str, Any]:
        """Describe the vocabulary for digests."""
        return {"kind": "bytes", "size": self.size}


@dataclass(frozen=True)
class TableVocabulary(Vocabulary):
    """Ids with a table of their texts, such as nanoGPT's ``meta`` files hold.

    Args:
        size: number of ids; those that the table lacks stand for no text.
        itos: text of each id.
        stoi: id of each text. Left away, it is made from `itos`; of equal texts the lowest id counts.

    Raises:
        DatasetError: an id of the table is outside the vocabulary, or the two tables disagree.
    """

    size: int
    itos: Mapping[int, str]
    stoi: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        beyond = [token_id for token_id in self.itos if not 0 <= token_id < self.size]
        if beyond:
            raise DatasetError(
                f"itos: expected ids 0 .. {self.size - 1}, because vocab_size is {self.size}, found {max(beyond)}; "
                "correct vocab_size or the table"
            )
        for text, token_id in self.stoi.items():
            if self.itos.get(token_id) != text:
                raise DatasetError(
                    f"stoi: expected {text!r} to be the text of its id {token_id}, found {self.itos.get(token_id)!r} "
                    "in itos; make the two tables agree"
                )
        if not self.stoi:
            lowest_wins = {self.itos[token_id]: token_id for token_id in sorted(self.itos, reverse=True)}
            object.__setattr__(self, "stoi", lowest_wins)

    def encode(self, text: str) -> list[int]:
        """Look each character up.

        Raises:
            DatasetError: a character has no id, or there are tokens longer than a character, so that how to
                split the text is not known here.
        """
        long_token = next((token for token in self.stoi if len(token) != 1), None)
        if long_token is not None:
            raise DatasetError(
                f"cannot encode text: expected a table of single characters, found the token {long_token!r}; encode "
                "with the tokeniser that made the corpus"
            )
        for position, character in enumerate(text):
            if character not in self.stoi:
                raise DatasetError(
                    f"cannot encode text: the character {character!r} at position {position} is none of the "
                    f"{len(self.stoi)} characters of the vocabulary; leave it out"
                )
        return [self.stoi[character] for character in text]

    def _decode(self, ids: Sequence[int]) -> str:
        return "".join(self.itos.get(token_id, REPLACEMENT) for token_id in ids)

    def description(self) -> dict[str, Any]:
        """Describe the vocabulary for digests."""
        return {
            "kind": "table",
            "size": self.size,
            "itos": sorted(self.itos.items()),
            "stoi": sorted(self.stoi.items()),
        }


@dataclass(frozen=True)
class IdVocabulary(Vocabulary):
    """Ids of which only the number is known."""

    size: int

    def encode(self, text: str) -> list[int]:
        """Refuse: nothing says which text an id stands for."""
        raise DatasetError(
            f"cannot encode the text {text[:20]!r}: the corpus has no table of its token ids; put a meta.json with "
            "'itos' beside train.bin, or encode with the tokeniser that made the corpus"
        )

    def _decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(token_id) for token_id in ids)

    def description(self) -> dict[str, Any]:
        """Describe the vocabulary for digests."""
        return {"kind": "ids", "size": self.size}

"""Is what ``torch.load`` has made of a file as large as the file, and what it seems to be?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def check_content(content: Any, maximum_bytes: int) -> None:
    """Refuse tensors that a few bytes make look like terabytes, and mappings whose methods are values of the file.

    A tensor of stride 0 repeats one element as often as its shape says: what touches it, a comparison or a copy, takes
    the memory. The weights-only reader sets any attribute of an ``OrderedDict``, ``items`` for one.

    Raises:
        ValueError: there is one.
    """
    todo = [content]
    seen: set[int] = set()
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            if not value.is_meta and value.numel() * value.element_size() > maximum_bytes and not value.is_sparse:
                raise ValueError(f"a tensor of shape {tuple(value.shape)!s:.80} has more bytes than the file")
        elif id(value) in seen:
            continue
        elif isinstance(value, dict):
            seen.add(id(value))
            hidden = [name for name in getattr(value, "__dict__", ()) if not _may_be_set(value, name)]
            if hidden:
                raise ValueError(f"a mapping whose attribute {hidden[0]!r:.80} is a value of the file")
            todo += value.keys()
            todo += value.values()
        elif isinstance(value, list | tuple | set):
            seen.add(id(value))
            todo += value


def _may_be_set(mapping: Mapping[Any, Any], name: Any) -> bool:
    """Attributes beside those of the class, such as the ``_metadata`` of a state dict, which is a mapping."""
    if name == "_metadata" and not isinstance(getattr(mapping, "_metadata", None), Mapping):
        return False
    return isinstance(name, str) and not hasattr(type(mapping), name)

"""Follow a pickle without making what it describes, before ``torch.load(weights_only=True)`` does.

That reader runs no code of the file, but some bytes can keep it, or whoever looks at the result, busy for ever: a call
of ``bytearray(10**11)``, a tuple that holds another one twice, which holds another one twice, and so on (to hash it, to
print it or to compare it means going through all of that), or a list in a list in a list a million times.

Here each operation that the weights-only reader knows is carried out on stand-ins. What that reader refuses ends the
check: it says itself what is wrong.
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path

from neuromanifold_gpt.checkpoint.errors import UntrustedPickleError

MAXIMUM_DEPTH = 400  # more than Python's recursion limit lets anybody save
_SPARE_VALUES = 1_000_000  # beside four for each byte of the pickle: what is shared counts where it stands
_SHORT_STRING_BYTES = 16
# Made from sizes by a call; torch.save writes tensors as calls of the functions in torch._utils.
_SIZED = re.compile(r"torch\.(cuda\.|sparse\.|cuda\.sparse\.)?\w*Tensor|torch\.storage\.\w+|torch\.\w+Storage")
_BYTEARRAYS = {"__builtin__.bytearray", "builtins.bytearray"}
_ENCODE = "_codecs.encode"
_HASHING = {"__builtin__.set", "builtins.set", "collections.Counter", "collections.OrderedDict"}
_REBUILD_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_ENCODINGS = {"latin1", "latin-1"}  # of bytes, which is all that is encoded; others may take for ever


class _Node:
    """Stands for a container, or what a call returns, with what is in it."""

    __slots__ = ("children", "depth", "made_by", "weight")

    def __init__(self, children: list[_Value], made_by: str = "") -> None:
        self.children = children
        self.made_by = made_by
        # Of a tuple, which stays as it is, they are final: what hashing it costs.
        self.weight: int = 1 + sum(child.weight for child in children if isinstance(child, _Node))
        self.depth: int = 1 + max((child.depth for child in children if isinstance(child, _Node)), default=0)


class _Leaf:
    """A number, a long string, ``None`` and so on."""


class _Global(str):
    """The name of a class or function."""

    __slots__ = ()


_Value = _Node | _Leaf | str
_LEAF = _Leaf()


class _RefusedError(Exception):
    """The pickle asks for too much."""


class _EndsError(Exception):
    """The weights-only reader goes no further than this."""


def check_pickle(path: Path, pickled: bytes | mmap.mmap, *, count: int = 1) -> None:
    """Refuse a pickle, or ``count`` of them one after the other, that asks for much more memory or time than its size.

    Raises:
        UntrustedPickleError: it does.
    """
    try:
        end = 0
        for _ in range(count):
            end = _Follower(pickled, end).run()
    except _RefusedError as refusal:
        raise UntrustedPickleError(
            f"{path}: reading it would need more than plain data: its pickle {refusal}. Pass trusted=True if you trust "
            "whoever wrote the file."
        ) from None
    except (_EndsError, IndexError, KeyError, ValueError, struct.error):
        return  # cut off, or no pickle: torch.load says what is wrong with it


class _Follower:
    def __init__(self, pickled: bytes | mmap.mmap, start: int) -> None:
        self._pickled = pickled
        self._at = start
        self._stack: list[_Value] = []
        self._marked: list[list[_Value]] = []
        self._memo: dict[int, _Value] = {}
        self._maximum_weight = _SPARE_VALUES + 4 * len(pickled)

    def run(self) -> int:
        """Up to the end, which is returned."""
        while True:
            code = self._pickled[self._at]
            self._at += 1
            if code == 0x2E:  # STOP
                self._check_all(self._stack.pop())
                return self._at
            if code in _LEAVES:
                self._at += _LEAVES[code]
                self._stack.append(_LEAF)
            elif code in _STRINGS:
                self._string(*_STRINGS[code])
            else:
                _OPERATIONS.get(code, _Follower._unknown)(self)

    def _number(self, form: str) -> int:
        size = struct.calcsize(form)
        (number,) = struct.unpack_from(form, self._pickled, self._at)
        self._at += size
        return int(number)

    def _string(self, form: str, is_text: bool) -> None:
        size = self._number(form)
        short = is_text and size <= _SHORT_STRING_BYTES
        text = self._pickled[self._at : self._at + size].decode(errors="replace") if short else _LEAF
        self._at += size
        self._stack.append(text)

    def _unknown(self) -> None:
        raise _EndsError

    def _protocol(self) -> None:
        self._at += 1

    def _global(self) -> None:
        parts = []
        for _ in range(2):
            end = self._pickled.find(b"\n", self._at)
            if end < 0:
                raise _EndsError
            parts.append(self._pickled[self._at : end].decode())
            self._at = end + 1
        self._stack.append(_Global(".".join(parts)))

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[_Value]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _put(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    def _get(self, key: int) -> None:
        self._stack.append(self._memo[key])

    def _container(self) -> None:
        self._stack.append(_Node([]))

    def _tuple(self, items: list[_Value]) -> None:
        node = _Node(items)
        self._check(node.weight, node.depth)
        self._stack.append(node)

    def _last(self, count: int) -> list[_Value]:
        items = self._stack[-count:]
        if len(items) != count:
            raise _EndsError
        del self._stack[-count:]
        return items

    def _add(self, items: list[_Value]) -> None:
        target = self._stack[-1]
        if not isinstance(target, _Node):
            raise _EndsError
        target.children += items

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, _Node):
            raise _EndsError
        self._check_call(function, arguments)
        self._stack.append(_Node([arguments], made_by=function))

    def _check_call(self, function: str, arguments: _Node) -> None:
        values = arguments.children
        if function == _REBUILD_FROM_TYPE:
            if len(values) < 3 or not isinstance(values[0], _Global) or not isinstance(values[2], _Node):
                raise _EndsError
            self._check_call(values[0], values[2])
        elif function in _BYTEARRAYS:
            content = values[0] if values else None
            is_bytes = isinstance(content, _Node) and content.made_by == _ENCODE
            if content is not None and not is_bytes:
                raise _RefusedError("asks for a bytearray without content")
        elif function == _ENCODE:
            if len(values) > 1 and not (isinstance(values[1], str) and values[1] in _ENCODINGS):
                raise _RefusedError("encodes text as something else than bytes")
        elif _SIZED.fullmatch(function):
            raise _RefusedError(f"calls {function}, which makes memory and not what was saved")
        elif function in _HASHING:
            self._check_all(arguments)

    def _check(self, weight: int, depth: int) -> None:
        if depth > MAXIMUM_DEPTH:
            raise _RefusedError(f"is nested more than {MAXIMUM_DEPTH} deep")
        if weight > self._maximum_weight:
            raise _RefusedError("stands for many more values than it has bytes")

    def _check_all(self, root: _Value) -> None:
        """Weight and depth of the whole, each thing counted wherever it stands."""
        if not isinstance(root, _Node):
            return
        done: dict[int, tuple[int, int]] = {}
        entered: set[int] = set()
        todo = [(root, False)]
        while todo:
            node, is_left = todo.pop()
            nodes = [child for child in node.children if isinstance(child, _Node)]
            if is_left:
                entered.discard(id(node))
                of_children = [done[id(child)] for child in nodes]
                weight = 1 + len(node.children) + sum(weight for weight, _ in of_children)
                depth = 1 + max((depth for _, depth in of_children), default=0)
                self._check(weight, depth)
                done[id(node)] = weight, depth
            elif id(node) in entered:
                raise _RefusedError("holds something that contains itself")
            elif id(node) not in done:
                entered.add(id(node))
                todo.append((node, True))
                todo += [(child, False) for child in nodes if id(child) not in done]


# Operations that push a value, and the bytes that follow them.
_LEAVES = {ord("N"): 0, 0x89: 0, 0x88: 0, ord("J"): 4, ord("K"): 1, ord("M"): 2, ord("G"): 8}
# Those that are followed by their size; whether they are text.
_STRINGS = {ord("X"): ("<I", True), ord("U"): ("<B", False), 0x8A: ("<B", False)}


def _persistent(follower: _Follower) -> None:
    follower._stack[-1] = _Node([follower._stack[-1]])


_OPERATIONS = {
    0x80: _Follower._protocol,
    ord("c"): _Follower._global,
    ord("("): _Follower._mark,
    ord("R"): _Follower._call,
    0x81: _Follower._call,
    ord("b"): lambda f: f._add(f._last(1)),
    ord("a"): lambda f: f._add(f._last(1)),
    ord("s"): lambda f: f._add(f._last(2)),
    ord("e"): lambda f: f._add(f._pop_mark()),
    ord("u"): lambda f: f._add(f._pop_mark()),
    ord("t"): lambda f: f._tuple(f._pop_mark()),
    0x85: lambda f: f._tuple(f._last(1)),
    0x86: lambda f: f._tuple(f._last(2)),
    0x87: lambda f: f._tuple(f._last(3)),
    ord(")"): lambda f: f._tuple([]),
    ord("]"): _Follower._container,
    ord("}"): _Follower._container,
    0x8F: _Follower._container,
    ord("Q"): _persistent,
    ord("h"): lambda f: f._get(f._number("<B")),
    ord("j"): lambda f: f._get(f._number("<I")),
    ord("q"): lambda f: f._put(f._number("<B")),
    ord("r"): lambda f: f._put(f._number("<I")),
}

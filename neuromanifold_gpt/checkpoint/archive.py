"""Write a staged tree as a ``torch.save`` archive whose bytes depend on the state alone.

Layout of the file: ``archive/byteorder``, ``archive/version``, ``archive/data/<key>`` for each storage in order,
and last ``archive/data.pkl``, which may therefore name digests of the data before it.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import torch
import xxhash
from torch import Tensor
from typing_extensions import Buffer

from neuromanifold_gpt.checkpoint.staging import Reduced, SortedSet, StagedTree, StorageRef, TensorRef
from neuromanifold_gpt.checkpoint.zip_stream import ZipStream

# Small enough to be checksummed and digested from the core's cache, large enough to make handing it over cheap.
CHUNK_BYTES = 4 << 20
_CHUNKS_UNDER_WAY = 4


@dataclass(frozen=True)
class TensorRecord:
    """Where a tensor lies in its file, and the digest of its bytes."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class WrittenArchive:
    """What was written: size and xxh3-128 digest of the file, and of each tensor in it."""

    size_bytes: int
    digest: str
    tensors: tuple[TensorRecord, ...]


class DigestingSink:
    """Writes to a file in order and completely, and digests what it writes, each in its own thread.

    A context manager: leaving it waits for the writes and raises the first error among them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._under_way: deque[Future[None]] = deque()
        self.size_bytes = 0
        self.digest = xxhash.xxh3_128()

    def __enter__(self) -> DigestingSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._thread.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            self._wait_for_all_but(0)

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``, which must not change until the sink is left."""
        self._under_way.append(self._thread.submit(self._write_all, data))
        self.size_bytes += len(data)
        self.digest.update(data)
        self._wait_for_all_but(_CHUNKS_UNDER_WAY)

    def _wait_for_all_but(self, count: int) -> None:
        while len(self._under_way) > count:
            self._under_way.popleft().result()

    def _write_all(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:  # a raw write may take less than it is given
            rest = rest[self._file.write(rest) :]


class ArchiveWriter:
    """Writes one archive: first :meth:`write_tensors`, then :meth:`finish` with what depends on them."""

    def __init__(self, sink: DigestingSink, staged: StagedTree) -> None:
        self._sink = sink
        self._zip = ZipStream(self._sink)
        self._staged = staged
        self._records: dict[str, tuple[int, str]] = {}

    def write_tensors(self) -> dict[str, str]:
        """Write all tensor data; return the digest of each storage, by key."""
        byteorder = sys.byteorder.encode()
        self._zip.add("archive/byteorder", len(byteorder), [byteorder])
        self._zip.add("archive/version", 2, [b"3\n"])
        for storage in self._staged.storages:
            digest = xxhash.xxh3_128()
            chunks = _digested(chunks_of(storage.tensor), digest)
            offset = self._zip.add(f"archive/data/{storage.key}", storage.size_bytes, chunks)
            self._records[storage.key] = (offset, digest.hexdigest())
        return {key: digest for key, (_, digest) in self._records.items()}

    def finish(self, stamp: dict[str, Any]) -> WrittenArchive:
        """Write the pickle, with ``stamp`` added to the tree's top level, and the directory."""
        pickled = pickle_canonically({**self._staged.tree, **stamp})
        self._zip.add("archive/data.pkl", len(pickled), [pickled])
        self._zip.close()
        tensors = tuple(self._tensor_record(tensor) for tensor in self._staged.tensors)
        return WrittenArchive(self._sink.size_bytes, self._sink.digest.hexdigest(), tensors)

    def _tensor_record(self, tensor: TensorRef) -> TensorRecord:
        offset, digest = self._records[tensor.storage.key]
        dtype = str(tensor.storage.tensor.dtype).removeprefix("torch.")
        return TensorRecord(tensor.path, dtype, tensor.shape, offset, tensor.storage.size_bytes, digest)


def storage_digests(staged: StagedTree) -> dict[str, str]:
    """Digest of each storage by key, without writing anything."""
    digests = {}
    for storage in staged.storages:
        digest = xxhash.xxh3_128()
        for _ in _digested(chunks_of(storage.tensor), digest):
            pass
        digests[storage.key] = digest.hexdigest()
    return digests


def content_digest(staged: StagedTree, digests: dict[str, str]) -> str:
    """One digest for everything that a staged tree says: its structure, its plain values and its tensors."""
    digest = xxhash.xxh3_128(pickle_canonically(staged.tree))
    for key in sorted(digests, key=int):
        digest.update(digests[key].encode())
    return digest.hexdigest()


def chunks_of(tensor: Tensor) -> Iterator[memoryview]:
    """The memory of a dense tensor in storage order, in pieces of at most :data:`CHUNK_BYTES`, from any device."""
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    if flat.device.type == "cpu":
        whole = _memory(flat)  # no copy
        for start in range(0, len(whole), CHUNK_BYTES):
            yield whole[start : start + CHUNK_BYTES]
        return
    device_chunk_bytes = 4 * CHUNK_BYTES  # larger: each piece costs a transfer
    for start in range(0, flat.numel(), device_chunk_bytes):
        yield _memory(flat[start : start + device_chunk_bytes].cpu())


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous uint8 CPU tensor, not copied."""
    return memoryview(cast(Buffer, tensor.numpy()))


def _digested(chunks: Iterator[memoryview], digest: xxhash.xxh3_128) -> Iterator[memoryview]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


class _CanonicalPickler(pickle.Pickler):
    """Writes each value where it stands, never a reference to an equal object seen before.

    ``fast`` switches off the memo, the one place where a pickle depends on object identity. Protocol 2 is what
    ``torch.save`` writes and the weights-only reader accepts.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.fast = True

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is not StorageRef:
            return None
        legacy_name = torch.storage._dtype_to_storage_type_map().get(obj.tensor.dtype)
        if legacy_name is None:  # newer dtypes have no storage class of their own; torch counts them in bytes
            return ("storage", torch.UntypedStorage, obj.key, "cpu", obj.size_bytes)
        return ("storage", getattr(torch, legacy_name), obj.key, "cpu", obj.tensor.numel())

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is TensorRef:
            return _reduce_tensor(obj)
        if type(obj) is SortedSet:
            return (set, (sorted(obj.items, key=pickle_canonically),))
        if type(obj) is Reduced:
            return obj.parts
        return NotImplemented


def _reduce_tensor(tensor: TensorRef) -> tuple[Any, ...]:
    """The same calls that ``torch.save`` records for a tensor (``Tensor.__reduce_ex__``)."""
    dtype = tensor.storage.tensor.dtype
    arguments: tuple[Any, ...] = (tensor.storage, 0, tensor.shape, tensor.stride, tensor.requires_grad, OrderedDict())
    if tensor.is_parameter:
        plain = TensorRef(tensor.path, tensor.storage, tensor.shape, tensor.stride, False, False)
        return (torch._utils._rebuild_parameter, (plain, tensor.requires_grad, OrderedDict()))
    if dtype not in torch.storage._dtype_to_storage_type_map():
        return (torch._utils._rebuild_tensor_v3, (*arguments, dtype))
    return (torch._utils._rebuild_tensor_v2, arguments)


def pickle_canonically(tree: Any) -> bytes:
    """Pickle a staged tree; equal trees give equal bytes."""
    buffer = io.BytesIO()
    _CanonicalPickler(buffer).dump(tree)
    return buffer.getvalue()

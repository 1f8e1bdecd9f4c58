"""Read safetensors files without their package, which the environment that certifies need not have."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from neuromanifold_gpt.certify.errors import UnreadableError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER_BYTES = 100_000_000


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Eight bytes with the header's length, a JSON header, then the data, as the format's page describes it.

    Raises:
        UnreadableError: it is torn.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise UnreadableError(f"{path.name}: a header of {header_bytes} bytes in a file of {size_bytes}")
        header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
    # Mapped, not read: pages come when they are compared, and can be dropped again.
    mapped = torch.empty(0, dtype=torch.uint8)
    mapped.set_(torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size_bytes))  # type: ignore[arg-type]
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        if not 8 + header_bytes <= begin <= end <= size_bytes:
            raise UnreadableError(f"{path.name}: {name} ends behind the file's end")
        dtype = _DTYPES[entry["dtype"]]
        data = mapped[begin:end]
        flat = (data if begin % dtype.itemsize == 0 else data.clone()).view(dtype)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors

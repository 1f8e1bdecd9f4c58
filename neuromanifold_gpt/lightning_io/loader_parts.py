"""What decides the batches of a loader that is read again on a resume."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from neuromanifold_gpt.state.owned_state import OwnedState


def owned_by_loader(number: int, loader: Any) -> dict[str, OwnedState]:
    """What decides the batches of a loader without ``state_dict``, by name."""
    return {
        name: OwnedState({name: part}, ignored, thorough=name.endswith("sampler"))
        for name, part, ignored in _parts_with_state(number, loader)
    }


def _parts_with_state(number: int, loader: Any) -> list[tuple[str, Any, tuple[Any, ...]]]:
    """What of a loader decides its batches, by name, each with what belongs to another part."""
    if not isinstance(loader, DataLoader):
        return [(f"{number}.iterable", loader, ())]
    sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    return [
        (f"{number}.sampler", sampler, (loader.dataset,)),
        (f"{number}.generator", loader.generator, ()),
        (f"{number}.dataset", loader.dataset, ()),  # of it and the next, workers get copies with each iterator
        (f"{number}.collate_fn", loader.collate_fn, ()),
    ]


def is_order(name: str) -> bool:
    """Whether a part decides the order of the samples, and is under way while they come."""
    return name.endswith((".sampler", ".generator"))

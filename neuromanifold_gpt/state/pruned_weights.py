"""What torch's pruning makes of a weight and its mask in each forward pass.

``prune.l1_unstructured`` and its like rank what the last pass has left in ``module.weight``, a plain attribute that is
older than the last step. A process that has restored the parameters, and made no pass, has what it began with there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from neuromanifold_gpt.state.modules import unwrap


def pruned_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of them as they are now, by path; of any shape, in the type of the parameter."""
    found = {path: vars(part).get(name) for path, part, name in _pruned(model)}
    return {path: value.detach().clone() for path, value in found.items() if isinstance(value, Tensor)}


def restore_pruned_weights(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Put back what :func:`pruned_weights` gave; of what is not pruned here, nothing."""
    for path, part, name in _pruned(model):
        if path in saved:
            setattr(part, name, saved[path].to(getattr(part, f"{name}_orig").device, copy=True))


def _pruned(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for owner, part in unwrap(model).named_modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                yield f"{owner}.{hook._tensor_name}".lstrip("."), part, hook._tensor_name

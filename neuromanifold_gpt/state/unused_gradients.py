"""Gradients that no optimizer has used yet: what a save in the middle of an accumulation window must not lose.

After a step, gradients mostly stay until the loop zeroes them, and storing them would cost half of what the moments of
Adam cost. They are told from those of an open window by what happened since: new gradients need a new graph, and
autograd numbers the nodes of its graphs. A hook on every optimizer, there from the import of this module, notes the
number at each step.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from neuromanifold_gpt.state.modules import gradients


class _OwnNodes(threading.local):
    count = 0


_own_nodes = _OwnNodes()
_nodes_at_step: WeakKeyDictionary[torch.optim.Optimizer, tuple[int, int] | None] = WeakKeyDictionary()


def unused_gradients(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The gradients that may still be added to, under the clean names of their parameters. The tensors are live.

    Left out are those of an optimizer after whose last step no graph was built. Where that is not known, after a step
    before this module was imported or inside ``torch.compile``, they are given: too many cost space, and nothing else.
    """
    nodes = _nodes_so_far()
    used = {
        id(parameter)
        for optimizer in optimizers
        if nodes is not None and _nodes_at_step.get(optimizer) == nodes
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return gradients(model, left_out=used)


def _note_step(optimizer: torch.optim.Optimizer, _args: tuple[Any, ...], _kwargs: dict[Any, Any]) -> None:
    if not torch.compiler.is_compiling():
        _nodes_at_step[optimizer] = _nodes_so_far()


def _nodes_so_far() -> tuple[int, int] | None:
    """This thread, and how many nodes of graphs it has built, those of this function not counted; in ten microseconds.

    ``None`` in inference mode, where there are none.
    """
    with torch.enable_grad():
        node = torch.ones((), device="cpu", requires_grad=True).clone().grad_fn
    if node is None:
        return None
    _own_nodes.count += 1
    return threading.get_ident(), node._sequence_nr() - _own_nodes.count


register_optimizer_step_post_hook(_note_step)

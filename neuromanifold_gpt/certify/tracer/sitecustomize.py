"""Note digests of what goes into every optimizer step of a torch program, without changing anything.

Python imports this module at its start when its directory is on PYTHONPATH. It waits for ``import torch`` and then
registers torch's own global hooks. One JSON line is written for each optimizer step: digests of weights, optimizer
buffers, model buffers, inputs, gradients, the states of the random number generators, and the learning rates.
It stands alone: the program's Python may be one that this package is not installed in.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.abc
import json
import os
import random
import sys
from typing import Any

_DIRECTORY = os.environ.get("NEUROMANIFOLD_CERTIFY_TRACE", "")
_MAX_BYTES_PER_TENSOR = 1 << 20


def _import_shadowed() -> None:
    """Another ``sitecustomize``, which this one stands before, still runs."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - nothing more is imported than needed
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]  # noqa: PTH100
    ours = sys.modules.pop(__name__, None)
    with contextlib.suppress(ImportError):
        importlib.import_module("sitecustomize")
    if ours is not None:
        sys.modules.setdefault(__name__, ours)


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Lets torch be found as usual, and registers the hooks when its import is over."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """The spec that the other finders give, its loader wrapped."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _Trace(module).register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class _Trace:
    """Gathers one record for each optimizer step of this process."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._root: Any = None
        self._first_with_tensors: Any = None
        self._record: dict[str, Any] = {}
        self._inputs = hashlib.blake2b(digest_size=8)
        self._rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
        self._path = f"{_DIRECTORY}/rank{self._rank}-{os.getpid()}.jsonl"

    def register(self) -> None:
        """Register the hooks that torch has for every module and every optimizer."""
        from torch.nn.modules.module import register_module_forward_pre_hook
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        register_module_forward_pre_hook(self._before_forward)
        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)

    def _before_forward(self, module: Any, inputs: Any) -> None:
        if not module.training or not self._torch.is_grad_enabled():
            return
        if self._root is None:
            self._root = module
        if module is self._root and "rng" not in self._record:
            self._record["rng"] = self._generators()
            self._record["buffers"] = self._digest(module.buffers())
        tensors = [value for value in _flat(inputs) if isinstance(value, self._torch.Tensor)]
        if tensors and self._first_with_tensors is None:
            self._first_with_tensors = module
        if tensors and module is self._first_with_tensors:
            self._inputs.update(self._digest(tensors).encode())

    def _before_step(self, optimizer: Any, _arguments: Any, _named: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._record["weights"] = self._digest(parameters)
        self._record["learning_rates"] = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
        states: dict[str, list[Any]] = {}
        for parameter in parameters:
            for name, value in optimizer.state.get(parameter, {}).items():
                states.setdefault(str(name), []).append(value)
        self._record["optimizer"] = {name: self._digest(values) for name, values in states.items()}

    def _after_step(self, optimizer: Any, _arguments: Any, _named: Any) -> None:
        gradients = (parameter.grad for group in optimizer.param_groups for parameter in group["params"])
        self._record["gradients"] = self._digest(gradient for gradient in gradients if gradient is not None)
        self._record["inputs"] = self._inputs.hexdigest()
        with open(self._path, "a") as file:  # noqa: PTH123
            file.write(json.dumps(self._record) + "\n")
        self._record = {}
        self._inputs = hashlib.blake2b(digest_size=8)
        self._root = self._first_with_tensors = None  # the next step may train another model

    def _generators(self) -> dict[str, str]:
        found = {
            "torch": self._digest([self._torch.get_rng_state()]),
            "python": hashlib.blake2b(repr(random.getstate()).encode(), digest_size=8).hexdigest(),
        }
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            state = numpy.random.get_state()
            found["numpy"] = hashlib.blake2b(state[1].tobytes() + repr(state[2:]).encode(), digest_size=8).hexdigest()
        return found

    def _digest(self, values: Any) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for value in values:
            if isinstance(value, self._torch.Tensor):
                tensor = value.detach().cpu()
                if tensor.layout is not self._torch.strided:
                    tensor = tensor.to_dense()
                flat = tensor.contiguous().reshape(-1).view(self._torch.uint8)
                digest.update(bytes(flat[:_MAX_BYTES_PER_TENSOR].numpy()))
            else:
                digest.update(repr(value).encode())
        return digest.hexdigest()


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _flat(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _flat(item)]
    return [value]


if _DIRECTORY:
    _import_shadowed()
    import importlib.util

    sys.meta_path.insert(0, _AfterTorch())

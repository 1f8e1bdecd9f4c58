"""What is trained: networks, frozen parameters, precision, compiled modules, averages of weights, accumulation."""

from __future__ import annotations

from ..cell import EXACT_OR_SAID, SAME_COURSE, Cell, both, lightning, loop, refuses

_NETWORKS = (
    "dropout",
    "batch norm",
    "instance norm",
    "tied",
    "recurrent",
    "attentive",
    "buffers",
    "frozen",
    "unused",
    "weight norm",
    "spectral norm",
    "lazy",
    "random activation",
)
_EVERY_FIFTH = {"every_n_train_steps": 5, "save_top_k": -1}
_MISMATCH = "StateMismatchError"
_PLAIN = {"network": "plain"}
_LENIENT = {"strict": False, **_PLAIN}
_LENIENT_UNUSED = {"strict": False, "network": "unused"}
_TRAINED = {"optimizer": "AdamW of trained"}
_TWO_EPOCHS = {"stops": (3, 10), "steps": 24}
_SGD = {"optimizer": "SGD", "optimizer_options": {"lr": 0.05, "momentum": 0.9}}

CELLS: list[Cell] = [
    *[
        cell
        for network in _NETWORKS
        for cell in both("model", network, network=network, stops=(5, 14))
        if not (cell.driver == "lightning" and network == "lazy")
    ],
    lightning("model", "lazy", network="lazy", stops=(5, 14), expected=EXACT_OR_SAID),
    lightning("model", "sparse embedding", network="sparse embedding", optimizer="SparseAdam+AdamW", module="by hand"),
    loop("model", "sparse embedding", network="sparse embedding", optimizer="SparseAdam+AdamW"),
    # matched by name
    *both(
        "model",
        "layers declared in another order",
        network="equal layers",
        changes={"network": "equal layers, reordered"},
    ),
    *both(
        "model",
        "layers declared in another order, momentum",
        network="equal layers",
        changes={"network": "equal layers, reordered"},
        **_SGD,
    ),
    *both(
        "model",
        "layers declared in another order, named parameters",
        network="equal layers",
        optimizer="named AdamW",
        changes={"network": "equal layers, reordered"},
    ),
    *both("model", "a parameter was added", changes={"network": "unused"}, expected=refuses(_MISMATCH, "unused")),
    *both("model", "a parameter was removed", network="unused", changes=_PLAIN, expected=refuses(_MISMATCH, "unused")),
    *both("model", "a parameter was added, strict=False", changes=_LENIENT_UNUSED, expected=SAME_COURSE),
    *both("model", "a parameter was removed, strict=False", network="unused", changes=_LENIENT, expected=SAME_COURSE),
    *both(
        "model",
        "another shape",
        network="dropout",
        changes={"network": "linear"},
        expected=refuses("StateMismatchError"),
    ),
    # frozen and unfrozen during training
    *[
        lightning(
            "freezing",
            f"{callback}, stopped at {stop}",
            callbacks=(callback,),
            stops=(stop,),
            schedule=None,
            **_TRAINED,
        )
        for callback in ("unfreeze later",)
        for stop in (3, 6, 7, 8, 13, 14, 15)
    ],
    *[
        lightning(
            "freezing",
            f"BackboneFinetuning, stopped at {stop}",
            module="backbone",
            callbacks=("BackboneFinetuning",),
            stops=(stop,),
            schedule=None,
            **_TRAINED,
        )
        for stop in (3, 6, 7, 8, 13, 14, 15)
    ],
    lightning(
        "freezing", "unfreeze later, twice", callbacks=("unfreeze later",), stops=(3, 10), schedule=None, **_TRAINED
    ),
    lightning("freezing", "in on_train_epoch_start", module="freezes by epoch", stops=(10,), expected=EXACT_OR_SAID),
    lightning("freezing", "in on_train_epoch_start, at an epoch's end", module="freezes by epoch", stops=(7,)),
    loop("freezing", "unfrozen from a step on", loop=frozenset({"unfreezes"}), stops=(5, 12)),
    loop("freezing", "unfrozen once", loop=frozenset({"unfreezes once"}), stops=(5,)),
    loop(
        "freezing",
        "unfrozen once, before the stop",
        loop=frozenset({"unfreezes once"}),
        stops=(12,),
        expected=EXACT_OR_SAID,
    ),
    # accumulation: 7 batches an epoch are windows of 4 and 3
    *[
        cell
        for stop in range(1, 10)
        for cell in both("accumulation", f"4, stopped at {stop}", accumulate=4, steps=11, stops=(stop,))
    ],
    *both("accumulation", "4, twice", accumulate=4, steps=11, stops=(2, 7)),
    *both("accumulation", "3, 2 workers", accumulate=3, steps=9, stops=(4,), workers=2),
    *both("accumulation", "7, the whole epoch", accumulate=7, steps=5, stops=(2,)),
    *both("accumulation", "4, clipped", accumulate=4, steps=9, stops=(3,), clip=0.1),
    *both("accumulation", "4, max_steps reached", accumulate=4, steps=9, stops=(5,), ending="finish"),
    lightning(
        "accumulation",
        "4, validation inside the window",
        accumulate=4,
        steps=9,
        stops=(3,),
        trainer={"val_check_interval": 2},
    ),
    lightning(
        "accumulation",
        "4, validation inside the window, best two",
        accumulate=4,
        steps=9,
        stops=(5,),
        callbacks=("best",),
        trainer={"val_check_interval": 3},
    ),
    lightning("accumulation", "4, by epochs", accumulate=4, stops=(3,), trainer={"max_steps": -1, "max_epochs": 4}),
    *[
        lightning(
            "accumulation",
            f"saved by hand in the window's middle, {network}",
            accumulate=4,
            steps=9,
            stops=(3,),
            save_in_hook="inside a window",
            network=network,
        )
        for network in ("dropout", "plain")
    ],
    *[
        loop(
            "accumulation",
            f"saved in the window's middle, {network}",
            accumulate=4,
            steps=9,
            stops=(3,),
            loop=frozenset({"saves in windows"}),
            network=network,
            save=_EVERY_FIFTH,
        )
        for network in ("dropout", "plain")
    ],
    *[
        lightning(
            "accumulation",
            f"by a schedule, stopped at {stop}",
            callbacks=("accumulation schedule",),
            steps=12,
            stops=(stop,),
        )
        for stop in (1, 2, 4, 5, 7, 8)
    ],
    lightning(
        "accumulation",
        "by hand",
        module="accumulates by hand",
        steps=10,
        stops=(4,),
        schedule=None,
        expected=EXACT_OR_SAID,
    ),
    lightning(
        "accumulation",
        "by hand, open at the epoch's end",
        module="accumulates by hand",
        steps=10,
        stops=(3,),
        schedule=None,
        validate=False,
        save={"every_n_epochs": 1, "save_top_k": -1},
        expected=EXACT_OR_SAID,
    ),
    # clipping and precision
    *both("precision", "gradients clipped by norm", clip=0.1),
    lightning("precision", "gradients clipped by value", clip=0.01, trainer={"gradient_clip_algorithm": "value"}),
    lightning("precision", "gradients clipped by the user", module="clips itself"),
    *both("precision", "bf16-mixed", precision="bf16-mixed", stops=(5, 14)),
    *both(
        "precision",
        "bf16-mixed, clipped, accumulated",
        precision="bf16-mixed",
        clip=0.1,
        accumulate=2,
        steps=9,
        stops=(5,),
    ),
    lightning("precision", "bf16-true", precision="bf16-true", stops=(5, 14)),
    lightning("precision", "16-mixed", precision="16-mixed", stops=(5, 14)),
    lightning("precision", "64-true", precision="64-true", stops=(5, 14)),
    loop("precision", "double", network="double", stops=(5, 14)),
    *both("precision", "module of bfloat16", network="bfloat16", stops=(5, 14)),
    loop("precision", "fp16 with GradScaler", precision="fp16", stops=(3, 14)),
    loop("precision", "fp16 with GradScaler, clipped", precision="fp16", clip=0.1, stops=(8,)),
    loop("precision", "fp16 with GradScaler, accumulated", precision="fp16", accumulate=4, steps=9, stops=(6,)),
    # torch.compile
    *[
        cell
        for backend in ("eager", "aot_eager", "inductor")
        for cell in both("torch.compile", backend, compile_backend=backend, network="dropout", steps=8, stops=(5,))
    ],
    *both(
        "torch.compile",
        "not compiled on resume",
        compile_backend="eager",
        steps=8,
        stops=(5,),
        changes={"compile_backend": None},
    ),
    *both("torch.compile", "compiled on resume", steps=8, stops=(5,), changes={"compile_backend": "eager"}),
    # averages of weights
    *[
        lightning("averages", f"{average}, stopped at {stop}", callbacks=(average,), stops=(stop,))
        for average in ("EMA", "EMA of buffers", "EMA, later", "WeightAveraging")
        for stop in (3, 7, 10)
    ],
    lightning("averages", "EMA by epoch", callbacks=("EMA by epoch",), stops=(10,)),
    lightning("averages", "EMA by epoch, at an epoch's end", callbacks=("EMA by epoch",), stops=(7,)),
    lightning(
        "averages",
        "EMA by epoch, cut short by max_steps",
        callbacks=("EMA by epoch",),
        stops=(10,),
        ending="finish",
        save={"every_n_epochs": 1, "save_top_k": -1},
        expected=EXACT_OR_SAID,
    ),
    lightning("averages", "EMA, twice", callbacks=("EMA",), stops=(3, 10)),
    lightning("averages", "EMA, same trainer", callbacks=("EMA",), stops=(10,), ending="same trainer"),
    *[
        lightning(
            "averages",
            f"{average}, stopped at {stop}",
            callbacks=(average,),
            stops=(stop,),
            schedule="steps by epoch",
            trainer={"max_steps": -1, "max_epochs": 5},
        )
        for average in ("SWA", "SWA, linear")
        for stop in (3, 7, 10, 14, 16, 21, 23, 28, 30)
    ],
    *[
        loop("averages", f"{average}, stopped at {stop}", average=average, stops=(stop,))
        for average in ("EMA", "EMA of buffers", "SWA")
        for stop in (3, 7, 10)
    ],
    loop("averages", "SWA with its annealing", average="SWA", schedule="SWA annealing", stops=(5, 12)),
]

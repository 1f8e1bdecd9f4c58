"""Interrupted anywhere, a Lightning run ends in the same bytes."""

from __future__ import annotations

import contextlib
import gc
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint, SeparatedCheckpointIO
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, StateMismatchError
from neuromanifold_gpt.data.errors import DataOrderWarning

from ..sampled import sampled
from .toy import NoisySamples, ToyModule, by_step, contents, fit

# 26 samples in batches of 4 are 7 batches an epoch, the last one short; 20 steps end in the middle of the third.
SCENARIOS: dict[str, dict[str, Any]] = {
    "validation at the end of each epoch": {},
    "without validation": {"validate": False},
    "validation inside the epoch": {"val_check_interval": 3},
    "validation by steps, across epochs": {"val_check_interval": 5, "check_val_every_n_epoch": None},
    "gradient accumulation with a ragged end": {"accumulate_grad_batches": 3, "max_steps": 8},
    "limited by epochs": {"max_steps": -1, "max_epochs": 3},
    "epoch-wise schedule": {"schedule": "epoch"},
    "plateau schedule on the validation loss": {"schedule": "plateau"},
    "plateau schedule on the training loss": {"schedule": "plateau_step", "val_check_interval": 3},
    "no sanity check": {"num_sanity_val_steps": 0},
    "gradient clipping": {"gradient_clip_val": 0.1},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "limited training batches": {"limit_train_batches": 5},
    "limited by epochs and batches": {
        "limit_train_batches": 5,
        "max_steps": -1,
        "max_epochs": 4,
        "schedule": "plateau",
    },
}


def saver(directory: Path, **options: Any) -> SeparatedCheckpoint:
    return SeparatedCheckpoint(directory, **{"every_n_train_steps": 1, "save_top_k": -1, **options})


IN_SUITE = (
    "validation inside the epoch",
    "gradient accumulation with a ragged end",
    "plateau schedule on the validation loss",
    "bf16-mixed",
    "limited by epochs and batches",
)


@pytest.mark.parametrize("name", sampled(SCENARIOS, IN_SUITE))
def test_resuming_from_any_step_ends_in_the_same_bytes(name: str, tmp_path: Path):
    options = SCENARIOS[name]
    _, whole = fit(saver(tmp_path / "a"), **options)
    expected = by_step(tmp_path / "a")
    last = max(expected)
    steps = {1, 7, 8} if last > 13 else {1, 3, 7}  # first, at an epoch's end or within it, behind it
    for step in sorted(steps & set(expected)):
        directory = tmp_path / f"b{step}"
        _, resumed = fit(saver(directory), ckpt_path=expected[step].model_path, workers=step % 3, **options)
        assert resumed.history == [entry for entry in whole.history if entry[0] >= step], f"from step {step}"
        found = by_step(directory)
        assert sorted(found) == [other for other in expected if other > step]
        assert contents(found[last]) == contents(expected[last]), f"from step {step}"


def test_a_run_resumed_at_every_step_ends_in_the_same_bytes(tmp_path: Path):
    fit(saver(tmp_path / "a"), max_steps=9, val_check_interval=3)
    path = None
    for step in range(1, 10):
        fit(saver(tmp_path / "b"), ckpt_path=path, max_steps=step, val_check_interval=3)
        path = by_step(tmp_path / "b")[step].model_path
    for step, checkpoint in by_step(tmp_path / "a").items():
        assert contents(by_step(tmp_path / "b")[step]) == contents(checkpoint), f"step {step}"


def test_early_stopping_has_the_same_patience_left(tmp_path: Path):
    def stopper() -> EarlyStopping:
        return EarlyStopping("val_loss", patience=3, min_delta=10.0)  # never improves by so much

    options = {"val_check_interval": 2, "max_steps": 50}
    trainer, _ = fit(saver(tmp_path / "a"), stopper(), **options)
    assert trainer.global_step < 50
    for step in (1, 2, 3, 4):
        path = by_step(tmp_path / "a")[step].model_path
        resumed, _ = fit(saver(tmp_path / f"b{step}"), stopper(), ckpt_path=path, **options)
        assert resumed.global_step == trainer.global_step


def test_a_checkpoint_of_an_epoch_that_max_steps_cut_short_resumes_in_its_middle(tmp_path: Path):
    """Lightning runs the hooks of the epoch's end then, and ModelCheckpoint saves there."""
    _, whole = fit(saver(tmp_path / "a", every_n_train_steps=None, every_n_epochs=1), max_steps=28)
    fit(saver(tmp_path / "b", every_n_train_steps=None, every_n_epochs=1), max_steps=10)
    assert sorted(by_step(tmp_path / "b")) == [7, 10]
    path = by_step(tmp_path / "b")[10].model_path
    _, resumed = fit(saver(tmp_path / "b", every_n_train_steps=None, every_n_epochs=1), ckpt_path=path, max_steps=28)
    assert resumed.history == whole.history[10:]
    for step in (14, 21, 28):
        assert contents(by_step(tmp_path / "b")[step]) == contents(by_step(tmp_path / "a")[step])


def test_a_run_that_early_stopping_has_ended_stays_ended(tmp_path: Path):
    """Also where it had decided to stop, but min_steps made it go on for a while."""

    def stopper() -> EarlyStopping:
        return EarlyStopping("val_loss", patience=2, min_delta=10.0)

    options = {"val_check_interval": 2, "max_steps": 50, "min_steps": 12}
    trainer, _ = fit(saver(tmp_path / "a"), stopper(), **options)
    last = trainer.global_step
    assert 12 <= last < 20
    for step in (5, 8, 10, last):
        path = by_step(tmp_path / "a")[step].model_path
        assert fit(saver(tmp_path / f"b{step}"), stopper(), ckpt_path=path, **options)[0].global_step == last


class SaveInHook(Callback):
    """A user who calls trainer.save_checkpoint in a hook of his own."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self._step, self._path = step, path
        setattr(self, hook, self._save)

    def _save(self, trainer: Trainer, *arguments: Any, **keywords: Any) -> None:
        if trainer.global_step == self._step and not self._path.exists() and not trainer.sanity_checking:
            trainer.save_checkpoint(self._path)


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_end", 5),
        ("on_train_batch_end", 6),  # validation is due in this step
        ("on_train_batch_end", 7),  # the last step of the epoch
        ("on_train_batch_start", 6),
        ("on_validation_start", 6),
        ("on_validation_batch_end", 6),
        ("on_validation_epoch_end", 6),
        ("on_validation_end", 6),
        ("on_train_epoch_end", 7),
        ("on_train_epoch_start", 7),
    ],
)
@pytest.mark.parametrize("schedule", sampled(["step", "plateau"], ["plateau"]))
def test_a_checkpoint_taken_in_a_users_hook_resumes_exactly(hook: str, step: int, schedule: str, tmp_path: Path):
    path = tmp_path / "by-hand.ckpt"
    options = {"val_check_interval": 3, "schedule": schedule}
    _, whole = fit(saver(tmp_path / "a"), SaveInHook(hook, step, path), **options)
    _, resumed = fit(saver(tmp_path / "b"), ckpt_path=path, **options)
    assert resumed.history == [entry for entry in whole.history if entry[0] >= step]
    assert contents(by_step(tmp_path / "b")[20]) == contents(by_step(tmp_path / "a")[20])


class Follows(Callback):
    """Has nothing to do, in each of the hooks."""

    def on_train_batch_end(self, *arguments: Any) -> None:
        pass

    def on_validation_end(self, *arguments: Any) -> None:
        pass

    def on_train_epoch_end(self, *arguments: Any) -> None:
        pass


class FailInHook(Callback):
    def __init__(self, hook: str, step: int) -> None:
        self._step = step
        setattr(self, hook, self._fail)

    def _fail(self, trainer: Trainer, *arguments: Any, **keywords: Any) -> None:
        if trainer.global_step == self._step and not trainer.sanity_checking:
            raise RuntimeError("a hook that fails")


class HasHooks(ToyModule):
    def on_train_batch_end(self, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize("by", ["hand", "exception"])
@pytest.mark.parametrize(
    ("hook", "step", "followed_by"),
    [
        ("on_train_batch_end", 5, "Follows, HasHooks"),
        ("on_validation_end", 6, "Follows, EarlyStopping"),
        ("on_train_epoch_end", 7, "Follows, EarlyStopping"),
    ],
)
def test_hooks_that_a_save_inside_a_hook_forestalls_are_said(
    hook: str, step: int, followed_by: str, by: str, tmp_path: Path
):
    acts: Callback = FailInHook(hook, step) if by == "exception" else SaveInHook(hook, step, tmp_path / "a.ckpt")
    stopping = EarlyStopping("val_loss", patience=50, check_on_train_epoch_end=hook == "on_train_epoch_end")
    save = saver(tmp_path / "a", every_n_train_steps=4, save_on_exception=by == "exception")

    def run() -> None:
        fit(Follows(), acts, Follows(), stopping, save, module=HasHooks(), val_check_interval=3)

    with (
        pytest.warns(InexactResumeWarning, match=f"saved inside {hook}, .* before it was called of {followed_by}: "),
        pytest.raises(RuntimeError, match="a hook that fails") if by == "exception" else contextlib.nullcontext(),
    ):
        run()


def test_a_save_in_the_last_of_the_hooks_forestalls_nothing(tmp_path: Path):
    class SavesItself(ToyModule):
        def on_train_batch_end(self, *arguments: Any) -> None:
            if self.global_step == 5:
                self.trainer.save_checkpoint(tmp_path / "a.ckpt")

    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        fit(Follows(), saver(tmp_path / "b"), module=SavesItself())
    assert (tmp_path / "a.ckpt").exists()


def test_a_checkpoint_taken_by_hand_after_fit_resumes_exactly(tmp_path: Path):
    """Stopped by max_steps in the middle of an epoch: the epoch is not over, whatever Lightning's counters say."""
    fit(saver(tmp_path / "a"))
    trainer, _ = fit(saver(tmp_path / "b"), max_steps=10)
    torch.rand(3)  # drawn by the user between the runs
    trainer.save_checkpoint(tmp_path / "by-hand.ckpt")
    fit(saver(tmp_path / "c"), ckpt_path=tmp_path / "by-hand.ckpt")
    assert contents(by_step(tmp_path / "c")[20]) == contents(by_step(tmp_path / "a")[20])


class FailAt(Callback):
    """Raises in the middle of a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_before_optimizer_step(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == self._step:
            raise RuntimeError("out of memory, say")


def test_a_checkpoint_saved_on_an_exception_resumes_at_the_step_that_failed(tmp_path: Path):
    fit(saver(tmp_path / "a", every_n_train_steps=4))
    said = pytest.warns(InexactResumeWarning, match="step 9 is saved before it is finished")
    with said, pytest.raises(RuntimeError, match="out of memory"):
        fit(saver(tmp_path / "b", every_n_train_steps=4, save_on_exception=True), FailAt(9))
    assert max(by_step(tmp_path / "b")) == 9
    # Batch norm has seen the batch of the failed step before it failed, so weights, not buffers, are compared.
    fit(saver(tmp_path / "b", every_n_train_steps=4), ckpt_path=by_step(tmp_path / "b")[9].model_path)
    states = [torch.load(by_step(tmp_path / run)[20].model_path, weights_only=True)["state_dict"] for run in "ab"]
    parameters = [name for name in states[0] if "running" not in name and "tracked" not in name]
    assert all(torch.equal(states[0][name], states[1][name]) for name in parameters)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_exception_around_the_update_of_weights_without_buffers(after: bool, tmp_path: Path):
    class Fails(ToyModule):
        def __init__(self) -> None:
            super().__init__()
            self.net[1] = torch.nn.Identity()

        def optimizer_step(self, *arguments: Any, **options: Any) -> None:
            if self.trainer.global_step == 9 and not after:
                raise RuntimeError("out of memory, say")
            super().optimizer_step(*arguments, **options)
            if self.trainer.global_step == 9:
                raise RuntimeError("out of memory, say")  # Lightning has not counted the step yet

    said = pytest.warns(InexactResumeWarning, match="step 9 is saved before") if after else warnings.catch_warnings()
    with said, pytest.raises(RuntimeError, match="out of memory"):
        fit(saver(tmp_path, every_n_train_steps=4, save_on_exception=True), module=Fails())
    assert max(by_step(tmp_path)) == 9


class Wraps(torch.optim.Optimizer):
    """As implementations of Lookahead do, without the constructor of its base class."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups, self.defaults = optimizer, optimizer.param_groups, optimizer.defaults
        self.state = optimizer.state

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)


def test_an_optimizer_that_wraps_another_and_has_no_hooks(tmp_path: Path):
    class Wrapped(ToyModule):
        def configure_optimizers(self) -> Any:
            return Wraps(torch.optim.AdamW(self.parameters(), lr=1e-2))

    fit(saver(tmp_path / "a", every_n_train_steps=2), module=Wrapped(), max_steps=4)
    assert max(by_step(tmp_path / "a")) == 4


def test_no_hook_stays_on_optimizers(tmp_path: Path):
    trainer, _ = fit(saver(tmp_path), max_steps=2)
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


class RestoresLate(SingleDeviceStrategy):
    """As model-parallel strategies do: behind ``on_fit_start``."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


def test_a_strategy_that_restores_behind_its_set_up(tmp_path: Path):
    def run(directory: Path, **options: Any) -> None:
        fit(saver(directory), strategy=RestoresLate(device=torch.device("cpu")), max_steps=9, **options)

    run(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        run(tmp_path / "b", ckpt_path=by_step(tmp_path / "a")[4].model_path)
    assert contents(by_step(tmp_path / "b")[9]) == contents(by_step(tmp_path / "a")[9])


def test_parameters_declared_in_another_order_keep_their_moments(tmp_path: Path):
    class TwoLayers(ToyModule):
        def __init__(self, reverse: bool = False) -> None:
            super().__init__()
            del self.net
            # Of one shape: a mix-up would pass every check of shapes.
            for name in ("first", "second")[:: -1 if reverse else 1]:
                setattr(self, name, torch.nn.Linear(8, 8))
            self.head = torch.nn.Linear(8, 1)

        def net(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.first(x).relu()).relu())

    _, whole = fit(saver(tmp_path / "a"), module=TwoLayers())
    path = by_step(tmp_path / "a")[9].model_path
    _, resumed = fit(saver(tmp_path / "b"), ckpt_path=path, module=TwoLayers(reverse=True))
    assert resumed.history == [entry for entry in whole.history if entry[0] >= 9]
    states = [torch.load(by_step(tmp_path / run)[20].model_path, weights_only=True)["state_dict"] for run in "ab"]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_groups_in_another_order_beside_a_schedule_are_refused(tmp_path: Path):
    """Schedulers count groups: their learning rates would be swapped."""

    class TwoGroups(ToyModule):
        def __init__(self, reverse: bool = False) -> None:
            super().__init__()
            self.reverse = reverse

        def configure_optimizers(self) -> Any:
            groups = [{"params": self.net[0].parameters(), "lr": 0.1}, {"params": self.net[4].parameters(), "lr": 0.01}]
            optimizer = torch.optim.AdamW(groups[:: -1 if self.reverse else 1])
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    fit(saver(tmp_path / "a"), module=TwoGroups(), max_steps=3)
    path = by_step(tmp_path / "a")[3].model_path
    with pytest.raises(StateMismatchError):
        fit(saver(tmp_path / "b"), module=TwoGroups(reverse=True), ckpt_path=path)


def test_a_compiled_network_saves_clean_names_and_resumes_exactly(tmp_path: Path):
    class Compiled(ToyModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.compile(self.net, backend="eager")

    fit(saver(tmp_path / "a"), module=Compiled(), max_steps=9)
    state = torch.load(by_step(tmp_path / "a")[5].model_path, weights_only=True)["state_dict"]
    assert sorted(state) == sorted(ToyModule().state_dict())
    fit(saver(tmp_path / "b"), module=Compiled(), max_steps=9, ckpt_path=by_step(tmp_path / "a")[5].model_path)
    assert contents(by_step(tmp_path / "b")[9]) == contents(by_step(tmp_path / "a")[9])
    fit(saver(tmp_path / "c"), max_steps=9, ckpt_path=by_step(tmp_path / "a")[5].model_path)  # not compiled
    assert 9 in by_step(tmp_path / "c")


def test_the_plugin_alone_neither_repeats_nor_skips_a_batch(tmp_path: Path):
    """A stock ModelCheckpoint writes through it; sample ids go on, the random numbers do not and it says so, once."""

    def stock(directory: Path) -> ModelCheckpoint:
        return ModelCheckpoint(directory, every_n_train_steps=5, save_top_k=-1)

    with pytest.warns(InexactResumeWarning, match="without the callback SeparatedCheckpoint") as said:
        _, whole = fit(stock(tmp_path / "a"), plugins=[SeparatedCheckpointIO()])
    assert sum(issubclass(warning.category, InexactResumeWarning) for warning in said) == 1
    for step, epoch in ((5, 0), (10, 1), (15, 2)):
        path = tmp_path / "a" / f"epoch={epoch}-step={step}.ckpt"
        assert path.is_file()
        assert path.with_name(path.name + "-optimizer.pt").is_file()
        with pytest.warns(InexactResumeWarning, match="without the callback SeparatedCheckpoint"):
            _, resumed = fit(stock(tmp_path / "b"), plugins=[SeparatedCheckpointIO()], ckpt_path=path)
        assert [ids for *_, ids in resumed.history] == [ids for *_, ids in whole.history[step:]]
        with pytest.warns(InexactResumeWarning, match="random number generators"):
            fit(saver(tmp_path / f"c{step}"), ckpt_path=path)


class DrawsInHooks(Callback):
    """Draws random numbers wherever Lightning lets it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.rand(5)

    def on_train_batch_start(self, *arguments: Any) -> None:
        torch.rand(1)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.rand(2)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.rand(3)


def test_random_numbers_drawn_in_hooks_do_not_shift_those_of_the_model(tmp_path: Path):
    _, whole = fit(saver(tmp_path / "a"), DrawsInHooks())
    for step in (3, 7, 8):
        path = by_step(tmp_path / "a")[step].model_path
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            _, resumed = fit(saver(tmp_path / f"b{step}"), DrawsInHooks(), ckpt_path=path)
        assert resumed.history == [entry for entry in whole.history if entry[0] >= step]


class CountsEpochEnds(Callback):
    """A state that changes in the hook of the epoch's end."""

    def __init__(self) -> None:
        self.ends = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ends += 1

    def state_dict(self) -> dict[str, Any]:
        return {"ends": self.ends}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ends = state_dict["ends"]


def test_hooks_of_an_epoch_that_max_steps_cut_short_leave_nothing_behind(tmp_path: Path):
    fit(saver(tmp_path / "a"), CountsEpochEnds(), max_steps=16)
    trainer, _ = fit(saver(tmp_path / "b", every_n_train_steps=None, every_n_epochs=1), CountsEpochEnds(), max_steps=10)
    trainer.save_checkpoint(tmp_path / "by-hand.ckpt")
    for number, path in enumerate((by_step(tmp_path / "b")[10].model_path, tmp_path / "by-hand.ckpt")):
        fit(saver(tmp_path / f"c{number}"), CountsEpochEnds(), ckpt_path=path, max_steps=16)
        assert contents(by_step(tmp_path / f"c{number}")[16]) == contents(by_step(tmp_path / "a")[16])


@pytest.mark.parametrize("step", [3, 7])
def test_saved_again_right_after_a_resume_the_state_is_the_same(step: int, tmp_path: Path):
    fit(saver(tmp_path / "a"))
    path = by_step(tmp_path / "a")[step].model_path

    class SaveAtStart(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "again.ckpt")

    fit(saver(tmp_path / "b"), SaveAtStart(), ckpt_path=path, max_steps=step + 1)
    again = torch.load(tmp_path / "again.ckpt-optimizer.pt", weights_only=True)
    assert again["exact_resume"]["callback_metrics"].keys() >= {"train_loss"}
    fit(saver(tmp_path / "c"), ckpt_path=tmp_path / "again.ckpt")
    assert contents(by_step(tmp_path / "c")[20]) == contents(by_step(tmp_path / "a")[20])


@pytest.mark.parametrize("short", [8, 18])  # the last pass of an epoch is left, of the latter in the next epoch's order
def test_a_loader_that_is_cycled_beside_a_longer_one_goes_on_where_it_was(short: int, tmp_path: Path):
    class TwoLoaders(ToyModule):
        def train_dataloader(self) -> Any:
            return [
                ResumableDataLoader(NoisySamples(size), batch_size=4, shuffle=True, seed=size) for size in (26, short)
            ]

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self._recorder.short_ids.append(batch[1][2].tolist())
            return super().training_step(batch[0], batch_idx) + 0 * batch[1][0].sum()

    def run(directory: Path, path: Path | None = None) -> TwoLoaders:
        module = TwoLoaders()
        module._recorder.short_ids = []
        fit(saver(directory), module=module, ckpt_path=path, loaders=False, max_steps=12)
        return module

    whole = run(tmp_path / "a")
    for step in (1, 6, 7):
        gc.collect()  # what is said of a pass whose iterator goes only now is of the run before
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "a resume of this training cannot be exact", DataOrderWarning)
            resumed = run(tmp_path / f"b{step}", by_step(tmp_path / "a")[step].model_path)
        assert resumed._recorder.short_ids == whole._recorder.short_ids[step:], f"from step {step}"
        assert contents(by_step(tmp_path / f"b{step}")[12]) == contents(by_step(tmp_path / "a")[12])


class Bank(torch.nn.Module):
    """Outputs of the last steps, which it takes up in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, 1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        mean = self.rows.mean() if len(self.rows) else 0.0
        self.rows = torch.cat([self.rows, rows.detach()])[-30:]
        return (rows - mean).square().mean()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        self.rows = torch.zeros_like(state_dict[f"{prefix}rows"])
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class FailingBank(Bank):
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        raise RuntimeError("the bank is of another kind")


class HasABank(ToyModule):
    kind = Bank

    def __init__(self) -> None:
        super().__init__()
        self.bank = self.kind()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) + 0.1 * self.bank(self.net(batch[0]))


class HasAFailingBank(HasABank):
    kind = FailingBank


def test_a_buffer_that_grows_goes_on_where_its_module_takes_it_up(tmp_path: Path):
    fit(saver(tmp_path / "a"), module=HasABank(), max_steps=9)
    path = by_step(tmp_path / "a")[5].model_path
    fit(saver(tmp_path / "b"), module=HasABank(), max_steps=9, ckpt_path=path)
    assert contents(by_step(tmp_path / "b")[9]) == contents(by_step(tmp_path / "a")[9])
    with pytest.raises(StateMismatchError, match="the bank is of another kind"):
        fit(saver(tmp_path / "c"), module=HasAFailingBank(), max_steps=9, ckpt_path=path)

"""Whatever loader Lightning is given: the next batch is the next batch, or it is said that it cannot be."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, default_collate
from torchmetrics import MeanMetric

from neuromanifold_gpt import CheckpointError, ResumableDataLoader, SeparatedCheckpoint, resumable
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, StateMismatchError
from neuromanifold_gpt.data.errors import DataOrderWarning, ReadAgainWarning

from ..record import Record
from ..sampled import sampled
from .toy import NoisySamples, ToyModule, by_step, contents, fit

pytestmark = [
    pytest.mark.filterwarnings("ignore::neuromanifold_gpt.data.errors.ReadAgainWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


class Counted(Sampler):
    """Shuffles with its own generator; later epochs depend on all before."""

    def __init__(self, size: int) -> None:
        self.ids, self.generator = list(range(size)), random.Random(3)

    def __iter__(self) -> Any:
        self.generator.shuffle(self.ids)
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


class Small(LightningModule):
    """Trains on one or several loaders; logs a mean over the epoch in both of Lightning's ways."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.2), nn.Linear(4, 1))
        self.mean = MeanMetric()
        self.record = Record(seen=[])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        of_several = isinstance(batch, dict) or isinstance(batch[0], list)
        batches = list(batch.values() if isinstance(batch, dict) else batch) if of_several else [batch]
        loss = sum(nn.functional.mse_loss(self.net(part[0]), part[1]) for part in batches if part is not None)
        self.mean(loss.detach())
        self.log("mean", self.mean, on_step=False, on_epoch=True, batch_size=4)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=4)
        self.record.seen.append((loss.item(), [None if part is None else part[2].tolist() for part in batches]))
        return loss

    def on_train_epoch_end(self) -> None:
        metrics = self.trainer.callback_metrics
        self.record.seen.append(("epoch", metrics["loss_epoch"].item(), metrics["mean"].item()))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def train(
    directory: Path,
    loaders: Any,
    path: Path | None = None,
    callbacks: Any = (),
    module: Small | None = None,
    **options: Any,
) -> Small:
    seed_everything(1 if path is None else 7, verbose=False)
    module = module or Small()
    saver = SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        **{"max_steps": 16, "max_epochs": -1, "logger": False, **options},
        accelerator="cpu",
        callbacks=[*callbacks, saver],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loaders(), ckpt_path=None if path is None else str(path))
    return module


class OwnIterable:
    def __iter__(self) -> Any:
        return iter([(torch.rand(4, 8), torch.ones(4, 1), torch.arange(4) + i) for i in range(7)])

    def __len__(self) -> int:
        return 7


def combined(mode: str, wrap: Any) -> CombinedLoader:
    long = wrap(DataLoader(NoisySamples(), 4, shuffle=True))
    short = wrap(DataLoader(NoisySamples(10), 4, sampler=Counted(10)))
    return CombinedLoader({"long": long, "short": short}, mode)


def plain(loader: Any) -> Any:
    return loader


LOADERS: dict[str, Any] = {
    "shuffled": lambda: DataLoader(NoisySamples(), 4, shuffle=True),
    "shuffled, with workers": lambda: DataLoader(NoisySamples(), 4, shuffle=True, num_workers=2),
    "own generator": lambda: DataLoader(
        NoisySamples(), 4, shuffle=True, generator=torch.Generator().manual_seed(4), num_workers=2
    ),
    "own iterable": lambda: OwnIterable(),
    **{
        f"{mode} of {wrap.__name__}": lambda mode=mode, wrap=wrap: combined(mode, wrap)
        for mode in ("max_size_cycle", "max_size", "min_size")
        for wrap in (plain, resumable)
    },
    **{
        f"max_size_cycle of shuffled ones{', with workers' * bool(workers)}": lambda workers=workers: [
            DataLoader(NoisySamples(), 4, shuffle=True),
            DataLoader(NoisySamples(10), 4, shuffle=True, num_workers=workers),
        ]
        for workers in (0, 1)
    },
    "max_size_cycle with a resumable one": lambda: [
        resumable(DataLoader(NoisySamples(5), 4, shuffle=True)),
        DataLoader(NoisySamples(), 4, shuffle=True),
        DataLoader(NoisySamples(9), 4, shuffle=True),
    ],
}


IN_SUITE = ("shuffled", "own generator", "own iterable", "max_size_cycle of shuffled ones", "min_size of resumable")


@pytest.mark.filterwarnings("ignore:a resume of this training cannot be exact. the order of Counted")
@pytest.mark.parametrize("name", sampled(LOADERS, IN_SUITE))
def test_continues_with_the_next_batch(name: str, tmp_path: Path):
    whole = train(tmp_path / "a", LOADERS[name])
    expected = by_step(tmp_path / "a")
    for step in (2, 6, 7):
        resumed = train(tmp_path / f"b{step}", LOADERS[name], expected[step].model_path)
        assert resumed.record.seen == whole.record.seen[-len(resumed.record.seen) :], f"from step {step}"
        assert contents(by_step(tmp_path / f"b{step}")[16]) == contents(expected[16]), f"from step {step}"


def test_data_that_ends_before_its_length_ends_the_epoch_once(tmp_path: Path):
    class Overstated(Counted):
        def __len__(self) -> int:
            return 40

    def loader() -> Any:
        return resumable(DataLoader(NoisySamples(), 4, sampler=Overstated(26)))

    whole = train(tmp_path / "a", loader)
    assert [entry[0] for entry in whole.record.seen].count("epoch") == 3
    for step in (6, 7, 8, 14):
        resumed = train(tmp_path / f"b{step}", loader, by_step(tmp_path / "a")[step].model_path)
        assert resumed.record.seen == whole.record.seen[-len(resumed.record.seen) :]
        assert contents(by_step(tmp_path / f"b{step}")[16]) == contents(by_step(tmp_path / "a")[16])


def test_reading_again_is_said_and_another_number_of_workers_too(tmp_path: Path):
    train(tmp_path / "a", LOADERS["shuffled"], max_steps=3)
    path = by_step(tmp_path / "a")[3].model_path
    with pytest.warns(ReadAgainWarning, match="DataLoader cannot go to a position: the 3 batches"):
        train(tmp_path / "b", LOADERS["shuffled"], path, max_steps=4)
    with pytest.warns(InexactResumeWarning, match=r"read by \[0\] workers, and is read by \[2\] now"):
        train(tmp_path / "c", LOADERS["shuffled, with workers"], path, max_steps=4)


@pytest.mark.parametrize("step", [3, 7], ids=["within an epoch", "between epochs"])
@pytest.mark.parametrize(
    ("loader", "match"),
    [
        (lambda: DataLoader(NoisySamples(), 6, shuffle=True), "batch_size was 4 and is 6.$"),
        (
            lambda: DataLoader(NoisySamples(30), 4),
            "sampler was RandomSampler and is .*, dataset_size was 26 and is 30.$",
        ),
    ],
)
def test_settings_of_a_stock_loader_that_differ_are_said(loader: Any, match: str, step: int, tmp_path: Path):
    train(tmp_path / "a", LOADERS["shuffled"], max_steps=step)
    path = by_step(tmp_path / "a")[step].model_path
    with pytest.warns(DataOrderWarning, match=match):
        train(tmp_path / "b", loader, path, max_steps=step + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        train(tmp_path / "c", LOADERS["shuffled"], path, max_steps=step + 1)


def reversed_collate(samples: Any) -> Any:
    return default_collate(samples[::-1])


class OtherCollate(Callback):
    """Gives the loader another function behind the first epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.train_dataloader.collate_fn = reversed_collate


def test_another_collate_function_of_a_stock_loader_is_said_at_the_save_and_on_the_resume(tmp_path: Path):
    def other() -> Any:
        return DataLoader(NoisySamples(), 4, shuffle=True, collate_fn=reversed_collate)

    with pytest.warns(DataOrderWarning, match=r"^0\.collate_fn was .*\.default_collate and is .*\.reversed_collate: t"):
        train(tmp_path / "a", LOADERS["shuffled"], max_steps=9, callbacks=[OtherCollate()])
    for step in (7, 9):  # between epochs, and in the middle of one
        path = by_step(tmp_path / "a")[step].model_path
        with pytest.warns(DataOrderWarning, match=r"collate_fn was .*\.reversed_collate and is .*\.default_collate\.$"):
            train(tmp_path / f"b{step}", LOADERS["shuffled"], path, max_steps=step + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error", DataOrderWarning)
            train(tmp_path / f"c{step}", other, path, max_steps=step + 1)


@pytest.mark.parametrize(
    ("loader", "match"),
    [
        (lambda: DataLoader(NoisySamples(), 4, num_workers=1, persistent_workers=True), "with persistent_workers"),
        (lambda: DataLoader(NoisySamples(), 4, sampler=Counted(26)), "order of Counted is repeated"),
        (lambda: iter(OwnIterable()), "is an iterator, which cannot be begun again"),
    ],
)
def test_what_cannot_be_repeated_is_said_when_training_starts(loader: Any, match: str, tmp_path: Path):
    with pytest.warns(InexactResumeWarning, match=match):
        train(tmp_path, loader, max_steps=1)


def test_one_loader_for_training_and_validation_is_said(tmp_path: Path):
    loader = ResumableDataLoader(NoisySamples(), 4)
    trainer = Trainer(
        max_steps=1,
        callbacks=[SeparatedCheckpoint(tmp_path)],
        logger=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    with pytest.warns(InexactResumeWarning, match="of training and of validation"):
        trainer.fit(ToyModule(), loader, loader)


class SaveIn(Callback):
    def __init__(self, hook: str, path: Path, call: int = 1) -> None:
        self._record, self._call, self._path = Record(calls=0), call, path
        setattr(self, hook, self._save)

    def _save(self, trainer: Trainer, *arguments: Any, **keywords: Any) -> None:
        self._record.calls += 1
        if self._record.calls == self._call:
            trainer.save_checkpoint(self._path)


def saver(directory: Path) -> SeparatedCheckpoint:
    return SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)


@pytest.mark.parametrize("batch", [5, 14])
def test_gradients_of_an_open_window_are_kept(batch: int, tmp_path: Path):
    options = {"accumulate_grad_batches": 3, "max_steps": 8}
    fit(saver(tmp_path / "a"), **options)
    path = tmp_path / "hand-model.pt"
    fit(saver(tmp_path / "b"), SaveIn("on_train_batch_end", path, batch), **options)
    fit(saver(tmp_path / "c"), ckpt_path=path, **options)
    assert contents(by_step(tmp_path / "c")[8]) == contents(by_step(tmp_path / "a")[8])


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_epoch_start"])
def test_a_save_before_the_first_step_resumes_there(hook: str, tmp_path: Path):
    whole = fit(saver(tmp_path / "a"), max_steps=9)[1]
    path = tmp_path / "hand-model.pt"
    fit(saver(tmp_path / "b"), SaveIn(hook, path), max_steps=1)
    assert fit(saver(tmp_path / "c"), ckpt_path=path, max_steps=9)[1].history == whole.history
    assert contents(by_step(tmp_path / "c")[9]) == contents(by_step(tmp_path / "a")[9])


@pytest.mark.parametrize("hook", ["on_before_zero_grad", "on_after_backward", "on_before_optimizer_step"])
def test_a_save_in_the_middle_of_a_step_is_said(hook: str, tmp_path: Path):
    with pytest.warns(InexactResumeWarning, match="saved before it is finished"):
        fit(SaveIn(hook, tmp_path / "hand-model.pt", 3), saver(tmp_path), max_steps=4)


def test_a_save_before_the_optimizers_are_loaded_is_refused(tmp_path: Path):
    fit(saver(tmp_path), max_steps=2)
    path = by_step(tmp_path)[2].model_path
    with pytest.raises(CheckpointError, match="too early"):
        fit(saver(tmp_path), SaveIn("on_fit_start", tmp_path / "hand-model.pt"), ckpt_path=path, max_steps=3)


class InItsType(ToyModule):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step([part.to(self.dtype) if part.is_floating_point() else part for part in batch], 0)


@pytest.mark.parametrize("averages", [False, True], ids=["", "averages"])
@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_weights_in_another_precision_keep_all_digits(precision: str, averages: bool, tmp_path: Path):
    def run(directory: Path, path: Path | None = None) -> None:
        callbacks = [EMAWeightAveraging(decay=0.9)] if averages else []
        options: dict[str, Any] = {"precision": precision, "validate": False, "max_steps": 9}
        fit(saver(directory), *callbacks, module=InItsType(), ckpt_path=path, **options)

    run(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        run(tmp_path / "b", by_step(tmp_path / "a")[4].model_path)
    assert contents(by_step(tmp_path / "b")[9]) == contents(by_step(tmp_path / "a")[9])


def test_weights_that_would_be_rounded_are_said(tmp_path: Path):
    fit(saver(tmp_path), max_steps=1, validate=False)
    path = by_step(tmp_path)[1].model_path
    with pytest.warns(InexactResumeWarning, match="rounded to the model's type: net.0.weight from torch.float32"):
        fit(saver(tmp_path), ckpt_path=path, max_steps=1, validate=False, precision="bf16-true")


class AverageEachEpoch(WeightAveraging):
    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None


def test_an_average_of_an_epoch_that_was_cut_short_is_said(tmp_path: Path):
    def by_epoch() -> SeparatedCheckpoint:
        return SeparatedCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1)

    fit(by_epoch(), AverageEachEpoch(), max_steps=10, validate=False)
    with pytest.warns(InexactResumeWarning, match="AverageEachEpoch averaged weights at the end of an epoch"):
        fit(by_epoch(), AverageEachEpoch(), ckpt_path=by_step(tmp_path)[10].model_path, validate=False)


def test_modules_declared_in_another_order_that_share_a_weight_keep_its_moments(tmp_path: Path):
    class Tied(ToyModule):
        def __init__(self, reverse: bool = False) -> None:
            super().__init__()
            del self.net
            for name in ("encoder", "decoder")[:: -1 if reverse else 1]:
                setattr(self, name, nn.Linear(8, 8))
            self.decoder.weight = self.encoder.weight
            self.head = nn.Linear(8, 1)

        def net(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.decoder(self.encoder(x).relu()))

    _, whole = fit(saver(tmp_path / "a"), module=Tied())
    path = by_step(tmp_path / "a")[9].model_path
    _, resumed = fit(saver(tmp_path / "b"), ckpt_path=path, module=Tied(reverse=True))
    assert resumed.history == [entry for entry in whole.history if entry[0] >= 9]


@pytest.mark.parametrize("change", ["added", "removed"])
def test_a_module_with_strict_loading_off_loads_the_rest(change: str, tmp_path: Path):
    class Changed(ToyModule):
        def __init__(self, extra: bool) -> None:
            super().__init__()
            self.strict_loading = False
            if extra:
                self.extra = nn.Linear(8, 1)

    fit(saver(tmp_path), module=Changed(change == "removed"), max_steps=2, validate=False)
    path = by_step(tmp_path)[2].model_path
    trainer, module = fit(
        saver(tmp_path), module=Changed(change == "added"), ckpt_path=path, max_steps=2, validate=False
    )
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(module.state_dict()["net.0.weight"], saved["net.0.weight"])
    assert trainer.global_step == 2


class TestWhatChangedOnResume:
    """What the checkpoint decides, or this run, is said; what fits nowhere is refused."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        fit(saver(tmp_path / "a"), max_steps=2, validate=False)
        return by_step(tmp_path / "a")[2].model_path

    def resume(self, path: Path, **options: Any) -> ToyModule:
        return fit(saver(path.parent), ckpt_path=path, **{"max_steps": 3, "validate": False, **options})[1]

    def test_settings_of_the_optimizer(self, path: Path):
        class Other(ToyModule):
            def configure_optimizers(self) -> Any:
                return self.with_schedule(torch.optim.AdamW(self.parameters(), lr=0.5, weight_decay=0.3))

        with pytest.warns(InexactResumeWarning, match="lr was 0.01 at the save and is 0.5 .* weight_decay was") as said:
            module = self.resume(path, module=Other())
        assert len([warning for warning in said if warning.category is InexactResumeWarning]) == 1
        assert module.optimizers().param_groups[0]["initial_lr"] == 0.01

    def test_settings_that_the_module_sets_itself_are_nothing_to_say(self, path: Path):
        class Setting(ToyModule):
            def configure_optimizers(self) -> Any:
                return self.with_schedule(torch.optim.AdamW(self.parameters(), lr=0.5))

            def on_train_start(self) -> None:
                self.optimizers().param_groups[0]["initial_lr"] = 0.5

        self.resume(path, module=Setting())

    def test_settings_of_the_trainer(self, path: Path):
        with pytest.warns(InexactResumeWarning, match="batches was 1 and is 2; gradient_clip_val was None"):
            self.resume(path, accumulate_grad_batches=2, gradient_clip_val=0.5)

    def test_another_optimizer_is_refused(self, path: Path):
        class Other(ToyModule):
            def configure_optimizers(self) -> Any:
                return self.with_schedule(torch.optim.SGD(self.parameters(), lr=0.01))

        with pytest.raises(StateMismatchError, match="state of AdamW as optimizer 0, and SGD was given"):
            self.resume(path, module=Other())

    @pytest.mark.parametrize(("schedule", "match"), [("epoch", "LambdaLR as scheduler 0, and StepLR"), (None, "of 1")])
    def test_another_scheduler_is_refused(self, schedule: str | None, match: str, path: Path):
        class Other(ToyModule):
            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
                return optimizer if schedule is None else self.with_schedule(optimizer)

        with pytest.raises(StateMismatchError, match=match):
            self.resume(path, module=Other(schedule=schedule or "step"))


class BufferedStream(IterableDataset):
    """Augments samples, and shuffles them in a buffer."""

    def __init__(self, draw: Callable[[int], int]) -> None:
        self.draw = draw

    def __iter__(self) -> Any:
        samples, buffer = NoisySamples(40), []
        for i in range(40):
            buffer.append(i)
            if len(buffer) > 10:
                yield samples[buffer.pop(self.draw(len(buffer)))]


class BufferedStreamWithLength(BufferedStream):
    def __len__(self) -> int:
        return 30


def of_the_model(length: int) -> int:
    return int(torch.randint(length, ()))


STREAM = pytest.mark.parametrize("stream", [BufferedStream, BufferedStreamWithLength])


@pytest.mark.filterwarnings("ignore:this resume is not exact. the next batch")
@STREAM
def test_a_stream_whose_order_depends_on_what_the_model_draws_is_said(stream: Any, tmp_path: Path):
    def loader() -> Any:
        return DataLoader(stream(of_the_model), 4)

    train(tmp_path / "a", loader, max_steps=4)
    with pytest.warns(InexactResumeWarning, match=f"{stream.__name__}, begun again, has come to other samples"):
        train(tmp_path / "b", loader, by_step(tmp_path / "a")[4].model_path, max_steps=5)


@STREAM
def test_a_stream_whose_samples_alone_depend_on_what_the_model_draws_is_exact(stream: Any, tmp_path: Path):
    def loader() -> Any:
        return DataLoader(stream(lambda length: length // 2), 4)

    whole = train(tmp_path / "a", loader)
    for step in (1, 4, 7, 10):
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            resumed = train(tmp_path / f"b{step}", loader, by_step(tmp_path / "a")[step].model_path)
        assert resumed.record.seen == whole.record.seen[-len(resumed.record.seen) :], f"from step {step}"


class Unsized(IterableDataset):
    def __iter__(self) -> Any:
        return map(NoisySamples(32).__getitem__, range(32))


class TakesSeveral(Small):
    """Takes them from the iterator itself."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        batches = [next(dataloader_iter)[0] for _ in range(self.batches)]
        return super().training_step(batches if len(batches) > 1 else batches[0], 0)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("dataset", [lambda: NoisySamples(32), Unsized], ids=["sized", "unsized"])
@pytest.mark.parametrize("wrap", [plain, resumable])
def test_an_epoch_ends_where_it_would_with_an_iterator_in_the_hands_of_the_step(
    wrap: Any, dataset: Any, batches: int, tmp_path: Path
):
    steps = 18 // batches

    def run(directory: str, path: Path | None = None) -> Any:
        seed_everything(1 if path is None else 7, verbose=False)
        module = TakesSeveral(batches)
        module.train_dataloader = lambda: wrap(DataLoader(dataset(), 4))  # type: ignore[method-assign]
        return train(tmp_path / directory, lambda: None, path, max_steps=steps, module=module).record.seen

    whole = run("a")
    saved = by_step(tmp_path / "a")
    for step in (1, 4, 8):
        again = run(f"b{step}", saved[step].model_path)
        assert again == whole[-len(again) :], f"from step {step}"
        assert contents(by_step(tmp_path / f"b{step}")[steps]) == contents(saved[steps]), f"from step {step}"

"""restore: everything is put back, or an error says why and nothing has changed."""

import copy
import itertools
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from neuromanifold_gpt import LoadedCheckpoint, ResumableDataLoader, load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointError,
    CheckpointWarning,
    EnvironmentChangedWarning,
    InexactResumeWarning,
    MissingOptimizerError,
    StateMismatchError,
)


class Training:
    """A loop in miniature, whose steps depend on everything that a checkpoint holds."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(1, 6), nn.Dropout(0.4), nn.Linear(6, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.loader = ResumableDataLoader([[float(i)] for i in range(10)], 2, shuffle=True, collate_fn=torch.tensor)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        self.average = AveragedModel(self.model)

    @property
    def parts(self):
        return {
            "model": self.model,
            "optimizers": self.optimizer,
            "schedulers": self.scheduler,
            "loaders": self.loader,
            "stateful": {"scaler": self.scaler, "average": self.average},
        }

    def train(self, steps):
        losses = []
        self.loader.load_state_dict(self.loader.state_dict())  # go on in the epoch that was left
        while steps:
            for x in self.loader:
                self.optimizer.zero_grad()
                loss = (self.model(x) - random.random() - np.random.rand()).pow(2).mean()
                self.scaler.scale(loss).backward()
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.scheduler.step()
                self.average.update_parameters(self.model)
                losses.append(loss.item())
                steps -= 1
                if not steps:
                    break
        return losses

    def state(self):
        """Everything that may change."""
        return repr({name: _plain(part.state_dict()) for name, part in vars(self).items()})


def _plain(value):
    """Tensors as lists, since their own text is rounded; the order of keys is not part of a state."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    return [_plain(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def saved(tmp_path):
    """A directory with a checkpoint after 7 steps, and the losses of the 8 steps after it."""
    training = Training()
    training.train(7)
    save_checkpoint(tmp_path, step=7, config={"n": 1}, **training.parts)
    losses = training.train(8)
    return tmp_path, losses, training.state()


class TestRestore:
    def test_continues_exactly_and_returns_itself(self, saved):
        directory, losses, end = saved
        training = Training(seed=5)
        training.train(3)
        loaded = load_checkpoint(directory)
        assert loaded.restore(**training.parts) is loaded
        assert (loaded.form, loaded.global_step, loaded.config) == ("separated", 7, {"n": 1})
        assert training.train(8) == losses
        assert training.state() == end

    def test_from_a_new_load_may_be_repeated(self, saved):
        directory, losses, end = saved
        training = Training()
        for _ in range(3):
            load_checkpoint(directory).restore(**training.parts)
            assert training.train(8) == losses
            assert training.state() == end

    def test_takes_sequences_as_well(self, saved):
        directory, losses, _ = saved
        training = Training()
        parts = training.parts
        for name in ("optimizers", "schedulers", "loaders"):
            parts[name] = (parts[name],)
        load_checkpoint(directory).restore(**parts)
        assert training.train(8) == losses

    def test_of_some_objects_leaves_the_others_alone(self, saved):
        directory, *_ = saved
        training = Training()
        training.train(2)
        before = {name: copy.deepcopy(part.state_dict()) for name, part in vars(training).items()}
        load_checkpoint(directory).restore(model=training.model)
        for name in ("optimizer", "scheduler", "loader", "scaler", "average"):
            assert _plain(getattr(training, name).state_dict()) == _plain(before[name])
        load_checkpoint(directory).restore(loaders=training.loader, stateful={"scaler": training.scaler})
        assert training.loader.state_dict()["samples_consumed"] == 4
        assert training.loader.state_dict()["epoch"] == 1

    def test_does_not_let_objects_change_what_was_loaded_except_optimizer_state(self, saved):
        directory, *_ = saved
        loaded = load_checkpoint(directory)
        kept = ("model_state", "lr_scheduler_states", "loader_states", "stateful_states", "rng_states", "config")
        before = {name: repr(_plain(getattr(loaded, name))) for name in kept}
        training = Training()
        loaded.restore(**training.parts)
        training.train(4)
        assert {name: repr(_plain(getattr(loaded, name))) for name in kept} == before

    def test_of_the_weights_alone_needs_the_model_file_alone(self, saved, tmp_path):
        directory, *_ = saved
        model_file = next(directory.glob("*-model.pt"))
        alone = tmp_path / "elsewhere"
        alone.mkdir()
        (alone / "weights.pt").write_bytes(model_file.read_bytes())
        training = Training(seed=9)
        generator = torch.get_rng_state()
        loaded = load_checkpoint(alone / "weights.pt", load_optimizer=False).restore(model=training.model)
        assert torch.equal(training.model[0].weight, loaded.model_state["0.weight"])
        assert torch.equal(torch.get_rng_state(), generator)

    def test_with_the_moments_of_a_plain_file_of_another_program(self, tmp_path):
        training, other = Training(), Training(seed=4)
        training.train(3)
        content = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict(), "step": 3}
        torch.save(content, tmp_path / "plain.pt")
        with pytest.warns(InexactResumeWarning, match="no states of random number generators"):
            loaded = load_checkpoint(tmp_path / "plain.pt").restore(model=other.model, optimizers=other.optimizer)
        assert (loaded.form, loaded.global_step) == ("plain", 3)
        assert _plain(other.optimizer.state_dict()) == _plain(training.optimizer.state_dict())
        assert _plain(other.model.state_dict()) == _plain(training.model.state_dict())


class TestRefusal:
    """Nothing has changed then, not even a random number generator."""

    def refused(self, loaded, training, error, match, **changed):
        training.train(2)
        before = training.state(), random.getstate(), torch.get_rng_state().tolist()
        with pytest.raises(error, match=match) as caught:
            loaded.restore(**{**training.parts, **changed})
        assert (training.state(), random.getstate(), torch.get_rng_state().tolist()) == before
        assert isinstance(caught.value, CheckpointError)

    @pytest.mark.parametrize("kind", ["optimizers", "schedulers", "loaders"])
    def test_of_a_wrong_number_of_objects(self, saved, kind):
        training = Training()
        given = [training.parts[kind]] * 2
        message = f"the state of 1 {kind}, 2 were given"
        self.refused(load_checkpoint(saved[0]), training, StateMismatchError, message, **{kind: given})

    @pytest.mark.parametrize("kind", ["schedulers", "loaders"])
    def test_of_objects_whose_state_was_not_saved(self, tmp_path, kind):
        training = Training()
        save_checkpoint(tmp_path, step=1, **{**training.parts, kind: ()})
        message = f"the state of 0 {kind}, 1 were given"
        self.refused(load_checkpoint(tmp_path), training, StateMismatchError, message)

    def test_of_a_stateful_object_that_was_not_saved(self, saved):
        training = Training()
        stateful = {"scaler": training.scaler, "other": training.scaler}
        message = r"no state of \['other'\], only of \['average', 'scaler'\]"
        self.refused(load_checkpoint(saved[0]), training, StateMismatchError, message, stateful=stateful)

    def test_of_another_model(self, saved):
        training = Training()
        training.model.append(nn.Linear(1, 1))
        self.refused(load_checkpoint(saved[0]), training, StateMismatchError, "missing in the checkpoint: 3.weight")

    def test_of_another_optimizer(self, saved):
        training = Training()
        training.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        training.scheduler = torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.9)
        message = r"missing in the checkpoint: unnamed\.1\.0"
        loaded = load_checkpoint(saved[0])
        before = copy.deepcopy(training.model.state_dict())
        with pytest.raises(StateMismatchError, match=message):
            loaded.restore(**training.parts)
        assert _plain(training.model.state_dict()) == _plain(before)


class TestModelOnly:
    @pytest.fixture
    def directory(self, tmp_path):
        save_checkpoint(tmp_path, step=7, save_model_only=True, **Training().parts)
        return tmp_path

    def test_has_no_optimizer_to_load(self, directory):
        with pytest.raises(MissingOptimizerError, match="model-only"):
            load_checkpoint(directory)

    def test_has_no_optimizer_to_restore(self, directory):
        loaded = load_checkpoint(directory, load_optimizer=False)
        assert loaded.optimizer_states is None
        training = Training()
        weight = training.model[0].weight.clone() + 1
        with torch.no_grad():
            training.model[0].weight.copy_(weight)
        with pytest.raises(MissingOptimizerError, match="Restore without optimizers"):
            loaded.restore(model=training.model, optimizers=training.optimizer)
        assert torch.equal(training.model[0].weight, weight)
        loaded.restore(model=training.model)
        assert not torch.equal(training.model[0].weight, weight)

    def test_is_what_a_whole_checkpoint_becomes_without_its_optimizer(self, saved):
        training = Training()
        loaded = load_checkpoint(saved[0], load_optimizer=False)
        with pytest.raises(MissingOptimizerError):
            loaded.restore(model=training.model, optimizers=training.optimizer)
        generator = torch.get_rng_state()
        loaded.restore(model=training.model)
        assert torch.equal(torch.get_rng_state(), generator)


class TestEnvironment:
    @pytest.fixture
    def other_threads(self):
        before = torch.get_num_threads()
        torch.set_num_threads(before + 1)
        yield before
        torch.set_num_threads(before)

    def test_that_can_change_bits_is_said_in_one_warning(self, saved, other_threads):
        training = Training()
        message = f"num_threads was {other_threads} and is {other_threads + 1} \\(the order of additions"
        with pytest.warns(EnvironmentChangedWarning, match=message) as caught:
            load_checkpoint(saved[0]).restore(**training.parts)
        assert len(caught) == 1
        assert "torch was" not in str(caught[0].message)

    def test_is_all_in_that_warning(self, saved, other_threads):
        was = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(not was)
        torch.set_float32_matmul_precision("high")
        try:
            with pytest.warns(EnvironmentChangedWarning, match="num_threads was") as caught:
                load_checkpoint(saved[0]).restore(**Training().parts)
        finally:
            torch.use_deterministic_algorithms(was)
            torch.set_float32_matmul_precision("highest")
        assert len(caught) == 1
        assert f"deterministic_algorithms was {was} and is {not was}" in str(caught[0].message)
        assert "float32_matmul_precision was 'highest' and is 'high'" in str(caught[0].message)

    def test_does_not_matter_for_the_weights_alone(self, saved, other_threads):
        with warnings.catch_warnings():
            warnings.simplefilter("error", CheckpointWarning)
            load_checkpoint(saved[0], load_optimizer=False).restore(model=Training().model)

    def test_that_is_the_same_is_not_worth_a_word(self, saved):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_checkpoint(saved[0]).restore(**Training().parts)


class TestLoadedCheckpoint:
    def test_has_what_was_saved(self, saved):
        loaded = load_checkpoint(saved[0])
        assert isinstance(loaded, LoadedCheckpoint)
        assert list(loaded.model_state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        assert [len(state["state"]) for state in loaded.optimizer_states] == [4]
        assert [state["last_epoch"] for state in loaded.lr_scheduler_states] == [7]
        assert [state["samples_consumed"] for state in loaded.loader_states] == [4]
        assert sorted(loaded.stateful_states) == ["average", "scaler"]
        assert loaded.stateful_states["scaler"]["scale"] == 64.0 * 2**3
        assert loaded.checkpoint.step == 7

    def test_is_not_changed_when_its_files_are(self, saved):
        loaded = load_checkpoint(saved[0])
        before = repr(_plain(loaded.model_state))
        for path in saved[0].iterdir():
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
        assert repr(_plain(loaded.model_state)) == before


def test_a_model_whose_lazy_parameters_have_no_shape_yet_goes_on(tmp_path):
    def make():
        model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model, optimizer, number):
        optimizer.zero_grad()
        model(torch.full((2, 4), float(number))).sum().backward()
        optimizer.step()

    model, optimizer = make()
    step(model, optimizer, 1)
    save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
    other, other_optimizer = make()
    load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
    for number in (2, 3):
        step(model, optimizer, number)
        step(other, other_optimizer, number)
    for parameter, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, same)


class HasAState(DataLoader):
    """Like torchdata's ``StatefulDataLoader``."""

    given = 0

    def state_dict(self):
        return {"given": self.given, "_iterator_finished": self.given == len(self)}

    def load_state_dict(self, state):
        self.given = state["given"]

    def __iter__(self):
        for self.given, batch in enumerate(super().__iter__(), 1):
            yield batch


@pytest.mark.parametrize(
    ("batches", "generator", "is_said"), [(2, None, True), (3, None, False), (2, torch.Generator(), False)]
)
def test_other_loaders_whose_iterators_draw_are_said_in_the_middle_of_an_epoch(batches, generator, is_said, tmp_path):
    model, loader = nn.Linear(1, 1), HasAState(range(3), generator=generator)
    for _ in itertools.islice(loader, batches):
        pass
    saved = save_checkpoint(tmp_path, step=1, model=model, loaders=loader)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_checkpoint(saved).restore(loaders=HasAState(range(3), generator=generator))
    assert [str(warning.message).partition(":")[0] for warning in caught] == ["HasAState"] * is_said

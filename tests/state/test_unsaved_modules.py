"""Modules beside the one that is saved, and data that no loader holds: what they keep, a plain loop is told."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics import Metric

from neuromanifold_gpt import ResumableDataLoader, load_checkpoint, save_checkpoint


class Training:
    """A model that is saved, and one who says how training has changed what is beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        self.stateful: dict[str, Any] = {}

    def save(self) -> None:
        parts: dict[str, Any] = {"model": self.model, "optimizers": self.optimizer, "stateful": self.stateful}
        save_checkpoint(self.directory, step=1, name="a", **parts)

    def restore(self) -> None:
        parts: dict[str, Any] = {"model": self.model, "optimizers": self.optimizer, "stateful": self.stateful}
        load_checkpoint(self.directory).restore(**parts)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


def changed(network: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.add_(1)


class Learner(nn.Module):
    """Wraps what is saved, beside a teacher and numbers of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.teacher = network, copy.deepcopy(network)
        self.register_buffer("center", torch.zeros(2))
        self.mean, self.temperature = torch.zeros(2), 1.0
        self.networks_beside = [nn.Linear(2, 2)]
        self.optimizer = torch.optim.SGD(self.networks_beside[0].parameters(), 0.1, momentum=0.9)
        self.replay: deque[Tensor] = deque(maxlen=4)
        self.results: dict[str, Tensor] = {}
        self.result: Tensor | None = None


def stepped(learner: Learner) -> None:
    network = learner.networks_beside[0]
    with torch.no_grad():
        before = copy.deepcopy(network.state_dict())
    network(torch.ones(2)).sum().backward()
    learner.optimizer.step()
    network.load_state_dict(before)


LEARNER_CHANGES: dict[str, Callable[[Learner], Any]] = {
    "teacher": lambda learner: changed(learner.teacher),
    "center": lambda learner: learner.center.add_(1),
    "mean": lambda learner: learner.mean.add_(1),
    "temperature": lambda learner: setattr(learner, "temperature", 0.5),
    "networks_beside[0]": lambda learner: changed(learner.networks_beside[0]),
    "optimizer": stepped,
    "replay": lambda learner: learner.replay.append(torch.ones(2)),
}


class TestAModuleAroundTheSavedOne:
    @pytest.mark.parametrize("name", LEARNER_CHANGES)
    def test_its_other_parts_are_said(self, name: str, training: Training, said: Callable[[], str]) -> None:
        learner = Learner(training.model)
        learner.replay.append(torch.zeros(2))
        stepped(learner)
        training.save()
        LEARNER_CHANGES[name](learner)
        training.save()
        assert f"Learner.{name}" in said()

    def test_behind_a_restore_too(self, training: Training, said: Callable[[], str]) -> None:
        learner = Learner(training.model)
        changed(learner.teacher)
        training.save()
        learner = Learner(training.model)
        training.restore()
        changed(learner.network)
        training.save()
        assert "were others at the save" in (text := said())
        assert "Learner.teacher" in text

    def test_containers_of_torch(self, training: Training, said: Callable[[], str]) -> None:
        networks = nn.ModuleDict({"student": training.model, "teacher": nn.Linear(2, 2)})
        training.save()
        changed(networks["teacher"])
        training.save()
        assert ".networks.teacher. If" in said()

    def test_but_not_what_is_saved_in_it(self, training: Training, said: Callable[[], str]) -> None:
        learner = Learner(training.model)
        training.stateful = {"teacher": learner.teacher}
        training.save()
        changed(learner.network)
        changed(learner.teacher)
        training.save()
        assert said() == ""

    def test_nor_its_memory_in_other_tensors(self, training: Training, said: Callable[[], str]) -> None:
        learner = Learner(training.model)

        class Averages:
            def __init__(self) -> None:
                self.tensors = list(learner.teacher.state_dict().values())

            def step(self) -> None:
                for tensor in self.tensors:
                    tensor += 1

        def trained(averages: Averages) -> str:
            for _ in range(3):
                training.save()
                averages.step()
            return said()

        training.stateful = {"teacher": learner.teacher}
        assert trained(Averages()) == ""
        apart = Averages()
        apart.tensors = [tensor.clone() for tensor in apart.tensors]
        assert "Averages.tensors" in trained(apart)

    def test_nor_what_the_state_of_another_has(self, training: Training, said: Callable[[], str]) -> None:
        learner = Learner(training.model)

        class Runner:
            def state_dict(self) -> dict[str, Any]:
                return {"teacher": learner.teacher.state_dict(), "center": learner.center, "mean": learner.mean}

            def load_state_dict(self, state: dict[str, Any]) -> None: ...

        training.stateful = {"runner": Runner()}
        training.save()
        changed(learner.teacher)
        learner.center += 1
        learner.mean += 1
        training.save()
        assert said() == ""

    def test_nor_what_is_saved_apart(self, training: Training, said: Callable[[], str]) -> None:
        learner = Learner(training.model)
        parts: dict[str, Any] = {"model": learner.networks_beside[0], "optimizers": learner.optimizer}
        for _ in range(2):
            stepped(learner)
            save_checkpoint(training.directory / "apart", step=1, name="a", **parts)
            training.save()
        assert "Learner" not in said()

    def test_nor_what_the_saved_one_holds_twice(self, training: Training, said: Callable[[], str]) -> None:
        training.model.beside = [nn.Linear(1, 1)]  # type: ignore[assignment]
        training.model.__class__ = type("Holder", (nn.Sequential,), {"__module__": __name__})
        outer = nn.Sequential(training.model)
        training.save()
        changed(outer[0].beside[0])
        training.save()
        assert ": beside. If" in said()

    def test_nor_results(self, training: Training, said: Callable[[], str]) -> None:
        learner = Learner(training.model)
        for _ in range(3):
            learner.result = training.model(torch.randn(2))
            learner.results = {"logits": learner.result}
            training.save()
        assert said() == ""

    @pytest.mark.parametrize("wrapped", [nn.DataParallel, torch.compile, nn.Sequential])
    def test_nor_one_that_only_passes_on(
        self, wrapped: Callable[[nn.Module], nn.Module], training: Training, said: Callable[[], str]
    ) -> None:
        outer = wrapped(training.model)
        for _ in range(2):
            changed(training.model)
            outer.train(not outer.training)
            training.save()
        assert said() == ""

    def test_an_average_of_it(self, training: Training, said: Callable[[], str]) -> None:
        average = AveragedModel(training.model)
        training.save()
        average.update_parameters(training.model)
        training.save()
        assert ".average. If" in said()


def test_a_network_that_equals_the_saved_one_at_each_save(training: Training, said: Callable[[], str]) -> None:
    """The target of a DQN, saved just after it was updated: what is saved is the other one."""
    target = copy.deepcopy(training.model)
    for _ in range(2):
        changed(training.model)
        target.load_state_dict(training.model.state_dict())
        training.save()
    assert ".target" in said()


@pytest.mark.parametrize("container", [nn.ModuleList, lambda parts: nn.ModuleDict({"all": nn.ModuleList(parts)})])
def test_containers_that_are_made_anew_for_each_save(
    container: Callable[[list[nn.Module]], nn.Module], training: Training, said: Callable[[], str]
) -> None:
    networks = [nn.Linear(1, 1), nn.Linear(1, 1)]
    average = nn.Linear(1, 1)
    for _ in range(3):
        training.model = container(networks)  # type: ignore[assignment]
        training.save()
        changed(average)
    assert said().count("values change in training that no checkpoint has") == 1
    training.model = container(networks)  # type: ignore[assignment]
    training.restore()
    changed(average)
    training.model = container(networks)  # type: ignore[assignment]
    training.save()
    assert ".average. If" in said()


class RegularizedLoss(nn.Module):
    """Remembers what was predicted for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.targets = torch.zeros(3, 2)
        self.loss = torch.tensor(0.0)
        self.logits: Tensor | None = None
        self.inner: nn.Module | None = None


class TestALossBesideTheModel:
    @pytest.mark.parametrize("is_within", [False, True])
    def test_tensors_in_its_attributes(self, is_within: bool, training: Training, said: Callable[[], str]) -> None:
        loss = inner = RegularizedLoss()
        if is_within:
            loss = RegularizedLoss()
            loss.inner = inner
        training.save()
        inner.targets[1] += 1
        training.save()
        assert ("loss.inner.targets. If" if is_within else ": RegularizedLoss.targets. If") in said()

    def test_also_if_an_object_has_it(self, training: Training, said: Callable[[], str]) -> None:
        class Runner:
            loss = nn.Identity()

        runner = Runner()
        runner.loss = RegularizedLoss()
        training.save()
        runner.loss.targets = runner.loss.targets + 1
        training.save()
        assert "Runner.loss.targets. If" in said()

    def test_but_not_results(self, training: Training, said: Callable[[], str]) -> None:
        loss = RegularizedLoss()
        for _ in range(3):
            loss.logits = training.model(torch.randn(3, 2))
            loss.loss = loss.logits.detach().mean()
            training.save()
        assert said() == ""

    def test_nor_who_uses_it(self, training: Training, said: Callable[[], str]) -> None:
        class Runner:
            def __init__(self, loss: nn.Module) -> None:
                self.weights, self.seen, self.loss = torch.ones(2), 0, loss

            def run(self) -> None:
                self.seen += 1
                training.save()

        loss = RegularizedLoss()
        runner = Runner(loss)
        loss.runner, loss.hook = runner, runner.run  # type: ignore[assignment]
        for _ in range(2):
            runner.run()
        assert said() == ""

    def test_nor_metrics_twice(self, training: Training, said: Callable[[], str]) -> None:
        class Counts(Metric):
            def __init__(self) -> None:
                super().__init__()
                self.add_state("of_classes", torch.zeros(2))

            def update(self) -> None:
                self.of_classes += 1

            def compute(self) -> Tensor:
                return self.of_classes

        counts = Counts()
        for _ in range(2):
            counts.update()
            training.save()
        assert "Counts. If" in (text := said())
        assert "of_classes" not in text

    def test_of_one_in_stateful_what_its_state_leaves_out(self, training: Training, said: Callable[[], str]) -> None:
        loss = RegularizedLoss()
        loss.register_buffer("mean", torch.zeros(3))
        training.stateful = {"loss": loss}
        training.save()
        loss.mean += 1
        training.save()
        assert said() == ""
        loss.targets += 1
        training.save()
        assert ": RegularizedLoss.targets. If" in said()


LAYER_CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], nn.Module]]] = {
    "label smoothing": (
        lambda: nn.CrossEntropyLoss(label_smoothing=0.5),
        lambda loss: setattr(loss, "label_smoothing", 0.4) or loss,
    ),
    "a margin": (lambda: nn.MultiMarginLoss(margin=0.5), lambda loss: setattr(loss, "margin", 0.6) or loss),
    "a dropout": (lambda: nn.Dropout(0.5), lambda layer: setattr(layer, "p", 0.6) or layer),
    "another loss": (nn.L1Loss, lambda loss: nn.MSELoss()),
    "one in a network of many tensors": (
        lambda: nn.Sequential(*(nn.Linear(1, 1) for _ in range(60)), nn.Dropout(0.5)),
        lambda network: setattr(network[-1], "p", 0.6) or network,
    ),
}


class TestSettingsOfLayersBesideTheModel:
    @pytest.mark.parametrize("kind", LAYER_CHANGES)
    def test_that_training_changes(self, kind: str, training: Training, said: Callable[[], str]) -> None:
        make, change = LAYER_CHANGES[kind]
        layer = make()
        training.save()
        layer = change(layer)
        training.save()
        assert ".layer. If" in said()

    def test_that_are_others_behind_a_restore(self, training: Training, said: Callable[[], str]) -> None:
        layer = nn.CrossEntropyLoss(label_smoothing=0.5)
        training.save()
        layer = nn.CrossEntropyLoss(label_smoothing=0.4)
        training.restore()
        training.save()
        assert "were others at the save" in said()
        assert layer.label_smoothing == 0.4

    def test_but_not_those_that_stay(self, training: Training, said: Callable[[], str]) -> None:
        layers = [nn.CrossEntropyLoss(label_smoothing=0.5), nn.Dropout(0.5)]
        training.save()
        layers = [nn.CrossEntropyLoss(label_smoothing=0.5), nn.Dropout(0.5).eval()]
        training.restore()
        training.save()
        assert said() == ""
        assert not layers[1].training


class Replay(Dataset[Tensor]):
    def __init__(self) -> None:
        self.seen: deque[Tensor] = deque([torch.zeros(2)], maxlen=8)
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.seen)

    def __getitem__(self, index: int) -> Tensor:
        return self.seen[index]


class SavedReplay(Replay):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": [*self.seen]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen.extend(state["seen"])


class TestDataThatTheLoopDrawsFromItself:
    def train(self, training: Training, replay: Any, loader: Any = None) -> Any:
        """``loader`` is a variable that holds one."""
        for step in range(2):
            replay.seen.append(torch.full((2,), float(step)))
            training.save()
        return loader

    @pytest.mark.parametrize("kind", [Replay, SavedReplay])
    def test_is_said(self, kind: type[Replay], training: Training, said: Callable[[], str]) -> None:
        self.train(training, kind())
        assert "Replay.seen. If" in said()

    def test_also_if_an_object_has_it(self, training: Training, said: Callable[[], str]) -> None:
        class Agent:
            def __init__(self) -> None:
                self.replay = Replay()

        agent = Agent()
        for step in range(2):
            agent.replay.seen.append(torch.full((2,), float(step)))
            training.save()
        assert "Agent.replay.seen. If" in said()

    @pytest.mark.parametrize("hold", [DataLoader, ResumableDataLoader])
    def test_but_not_if_a_loader_has_it(
        self, hold: Callable[[Any], Any], training: Training, said: Callable[[], str]
    ) -> None:
        replay = Replay()
        self.train(training, replay, hold(replay))
        self.train(training, replay, hold(Subset(replay, [0])))
        assert "seen" not in said()

    def test_nor_if_it_is_saved(self, training: Training, said: Callable[[], str]) -> None:
        replay = SavedReplay()
        training.stateful = {"replay": replay}
        self.train(training, replay)
        assert said() == ""

    def test_nor_numbers_that_the_loop_may_set(self, training: Training, said: Callable[[], str]) -> None:
        replay = Replay()
        for replay.epoch in range(2):
            training.save()
        assert said() == ""

    def test_nor_what_each_round_makes_anew(self, training: Training, said: Callable[[], str]) -> None:
        for step in range(2):
            replay = Replay()
            replay.seen.append(torch.full((2,), float(step)))
            training.save()
        assert said() == ""

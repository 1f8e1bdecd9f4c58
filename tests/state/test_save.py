"""save_checkpoint: what it writes, what it returns, what it refuses, and that it changes nothing."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from neuromanifold_gpt import (
    Checkpoint,
    ResumableDataLoader,
    list_checkpoints,
    load_checkpoint,
    resumable,
    save_checkpoint,
    verify_checkpoint,
)
from neuromanifold_gpt.checkpoint.errors import CheckpointWriteError, UnsupportedObjectError
from neuromanifold_gpt.state.loop_parts import as_list


def make():
    """A model with an optimizer that has stepped, its scheduler, and a loader."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    return model, optimizer, scheduler, ResumableDataLoader(range(10), 2, shuffle=True)


class TestFiles:
    def test_are_a_model_file_an_optimizer_file_and_a_manifest(self, tmp_path):
        model, optimizer, scheduler, loader = make()
        checkpoint = save_checkpoint(
            tmp_path / "new" / "directory",
            step=50,
            model=model,
            optimizers=optimizer,
            schedulers=scheduler,
            loaders=loader,
            stateful={"other": scheduler},
            epoch=2,
            config={"n_layer": 2},
            metrics={"val_loss": torch.tensor(0.5), "steps": 3},
        )
        assert isinstance(checkpoint, Checkpoint)
        names = ["checkpoint-step000050-model.pt", "checkpoint-step000050-optimizer.pt", "checkpoint-step000050.json"]
        assert sorted(path.name for path in (tmp_path / "new" / "directory").iterdir()) == names
        assert (checkpoint.step, checkpoint.epoch, checkpoint.model_only) == (50, 2, False)
        assert checkpoint.metrics == {"val_loss": 0.5, "steps": 3.0}
        assert list_checkpoints(tmp_path / "new" / "directory") == [checkpoint]
        assert verify_checkpoint(checkpoint).files == 2

    def test_hold_the_weights_in_one_and_all_the_rest_in_the_other(self, tmp_path):
        model, optimizer, scheduler, loader = make()
        checkpoint = save_checkpoint(
            tmp_path,
            step=50,
            model=model,
            optimizers=optimizer,
            schedulers=scheduler,
            loaders=loader,
            stateful={"zeta": scheduler, "alpha": loader},
            config={"n_layer": 2},
        )
        of_model = torch.load(checkpoint.model_path, weights_only=True)
        assert of_model["state_dict"].keys() == model.state_dict().keys()
        assert (of_model["global_step"], of_model["config"]) == (50, {"n_layer": 2})
        of_optimizer = torch.load(checkpoint.optimizer_path, weights_only=True)
        assert len(of_optimizer["optimizer_states"]) == len(of_optimizer["lr_schedulers"]) == 1
        assert of_optimizer["data"] == [[loader.state_dict()]]
        assert list(of_optimizer["stateful"]) == ["alpha", "zeta"]
        assert set(of_model) & set(of_optimizer) == {"epoch", "global_step", "separated_checkpoint"}

    def test_of_the_model_are_a_lightning_checkpoint(self, tmp_path):
        lightning = pytest.importorskip("lightning.pytorch")

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(2, 2)

        module = Module()
        checkpoint = save_checkpoint(tmp_path, step=1, model=module)
        loaded = Module.load_from_checkpoint(checkpoint.model_path)
        assert torch.equal(loaded.layer.weight, module.layer.weight)

    def test_of_a_model_only_checkpoint_lack_the_optimizer(self, tmp_path):
        model, optimizer, *_ = make()
        checkpoint = save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer, save_model_only=True)
        assert checkpoint.model_only
        assert checkpoint.optimizer_path is None
        assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".pt"]

    def test_may_have_another_name(self, tmp_path):
        checkpoint = save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1), name="best")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["best-model.pt", "best-optimizer.pt", "best.json"]
        assert load_checkpoint(tmp_path / "best-model.pt").checkpoint == checkpoint

    def test_are_the_same_bytes_for_the_same_state(self, tmp_path):
        files = []
        for number in range(2):
            model, optimizer, scheduler, loader = make()
            stateful = {"a": scheduler, "b": loader}
            if number:
                stateful = dict(reversed(stateful.items()))
                optimizer.state = type(optimizer.state)(
                    optimizer.state.default_factory, reversed(optimizer.state.items())
                )
            checkpoint = save_checkpoint(
                tmp_path / str(number),
                step=1,
                model=model,
                optimizers=[optimizer],
                schedulers=(scheduler,),
                stateful=stateful,
            )
            files.append((checkpoint.model_path.read_bytes(), checkpoint.optimizer_path.read_bytes()))
        assert files[0] == files[1]

    def test_replace_those_of_the_same_step(self, tmp_path):
        model = nn.Linear(2, 2)
        save_checkpoint(tmp_path, step=1, model=model)
        with torch.no_grad():
            model.weight.fill_(3)
        save_checkpoint(tmp_path, step=1, model=model)
        assert load_checkpoint(tmp_path).model_state["weight"].eq(3).all()
        assert len(list(tmp_path.iterdir())) == 3


class TestSaving:
    def test_changes_nothing_of_what_is_saved(self, tmp_path):
        model, optimizer, scheduler, loader = make()
        model.train()
        next(iter(loader))
        parts = (model, optimizer, scheduler, loader)
        before = copy.deepcopy([part.state_dict() for part in parts])
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer, schedulers=scheduler, loaders=loader)
        assert str([part.state_dict() for part in parts]) == str(before)
        assert all(map(torch.equal, gradients, (parameter.grad for parameter in model.parameters())))
        assert model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
        keys = list(torch.optim.AdamW(model.parameters()).param_groups[0])
        assert list(optimizer.param_groups[0]) == [*keys, "initial_lr"]

    def test_needs_a_model_only(self, tmp_path):
        loaded = load_checkpoint(save_checkpoint(tmp_path, step=0, model=nn.Linear(1, 1)))
        assert (loaded.optimizer_states, loaded.lr_scheduler_states, loaded.loader_states) == ([], [], [])
        assert len(loaded.rng_states) == 1

    @pytest.mark.parametrize("step", [0, 7, 12_345_678, np.int64(7), np.uint8(7)])
    def test_takes_any_integer_for_step_and_epoch(self, step, tmp_path):
        checkpoint = save_checkpoint(tmp_path, step=step, epoch=step, model=nn.Linear(1, 1))
        assert (checkpoint.step, checkpoint.epoch) == (step, step)
        assert list_checkpoints(tmp_path) == [checkpoint]
        assert json.loads(checkpoint.paths.manifest.read_text())["step"] == step
        loaded = load_checkpoint(tmp_path)
        assert (loaded.global_step, loaded.epoch) == (step, step)

    @pytest.mark.parametrize("name", ["step", "epoch"])
    @pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.0, TypeError), ("1", TypeError)])
    def test_refuses_other_steps_before_it_writes_anything(self, name, value, error, tmp_path):
        with pytest.raises(error):
            save_checkpoint(tmp_path / "new", model=nn.Linear(1, 1), **{"step": 1, name: value})
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        ("options", "place"),
        [
            ({"config": {"path": {"of": np.float64(1)}}}, "config/path/of"),
            ({"config": {"rng": object()}}, "config/rng"),
            ({"stateful": {"x": "stands for an object"}}, "stateful/x/y/1"),
        ],
    )
    def test_refuses_what_could_not_be_read_back_and_names_it(self, options, place, tmp_path):
        class Holder:
            def state_dict(self):
                return {"y": [1, np.int64(2)]}

            def load_state_dict(self, state):
                raise AssertionError("nothing is loaded")

        if "stateful" in options:
            options = {"stateful": {"x": Holder()}}
        save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1))
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(UnsupportedObjectError, match=f"cannot save {place}: "):
            save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1), **options)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_refuses_a_url(self, tmp_path):
        with pytest.raises(CheckpointWriteError, match="only local directories"):
            save_checkpoint("s3://bucket/run", step=1, model=nn.Linear(1, 1))

    def test_into_a_file_is_an_error_that_names_it(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(CheckpointWriteError, match=str(tmp_path / "file")):
            save_checkpoint(tmp_path / "file", step=1, model=nn.Linear(1, 1))
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


class TestOneOrSeveral:
    def test_is_always_a_list(self):
        one = object()
        assert as_list(one) == [one]
        assert as_list([one]) == as_list((one,)) == [one]
        assert as_list(()) == []

    def test_an_optimizer_is_one(self):
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        assert as_list(optimizer) == [optimizer]


def test_a_dict_of_models_is_refused_with_the_remedy(tmp_path):
    networks = {"generator": nn.Linear(1, 1)}
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, found a dict\. .* nn.ModuleDict"):
        save_checkpoint(tmp_path / "a", step=1, model=networks)
    assert not (tmp_path / "a").exists()
    saved = save_checkpoint(tmp_path / "b", step=1, model=nn.ModuleDict(networks))
    with pytest.raises(TypeError, match=r"found a dict\. .* nn.ModuleDict"):
        load_checkpoint(saved).restore(model=networks)


@pytest.mark.parametrize("kind", ["optimizers", "schedulers", "loaders"])
def test_of_several_a_list_is_expected(kind, tmp_path):
    model = nn.Linear(2, 2)
    given = {kind: {"first": torch.optim.SGD(model.parameters(), lr=0.1)}}
    with pytest.raises(TypeError, match=f"{kind}: expected one object or a list, found a dict"):
        save_checkpoint(tmp_path, step=1, model=model, **given)


class TestLoadersWithoutAPosition:
    """Are refused by name, with the remedy, before anything is written."""

    def test_a_stock_loader(self, tmp_path):
        model, loader = nn.Linear(2, 2), torch.utils.data.DataLoader([1.0])
        with pytest.raises(TypeError, match=r"loaders: expected .* found a DataLoader. Wrap .*resumable\(loader\)"):
            save_checkpoint(tmp_path / "out", step=1, model=model, loaders=loader)
        assert not (tmp_path / "out").exists()
        checkpoint = save_checkpoint(tmp_path / "out", step=1, model=model, loaders=resumable(loader))
        with pytest.raises(TypeError, match="loaders: expected"):
            load_checkpoint(checkpoint).restore(model=model, loaders=loader)

    def test_the_wrapper_of_fabric_for_which_the_loader_inside_is_given(self, tmp_path):
        """Fabric's hides the methods of the loader, and reads from it."""
        fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu")
        model, samples = nn.Linear(1, 1), [float(i) for i in range(10)]
        loader = ResumableDataLoader(samples, shuffle=True, seed=1)
        wrapped = fabric.setup_dataloaders(loader)
        with pytest.raises(TypeError, match=r"found a _FabricDataLoader.*the loader inside"):
            save_checkpoint(tmp_path, step=1, model=model, loaders=wrapped)
        batches = iter(wrapped)
        seen = [next(batches).item() for _ in range(4)]
        checkpoint = save_checkpoint(tmp_path, step=4, model=model, loaders=loader)
        expected = seen + [batch.item() for batch in batches]

        again = ResumableDataLoader(samples, shuffle=True, seed=1)
        load_checkpoint(checkpoint).restore(model=model, loaders=again)
        assert seen + [batch.item() for batch in fabric.setup_dataloaders(again)] == expected
        assert sorted(expected) == samples

    @pytest.mark.parametrize("stop", [4, 14, 20, 23])
    def test_the_wrapper_of_fabric_which_counts_epochs_from_0_again(self, tmp_path, stop):
        fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu")
        model, samples = nn.Linear(1, 1), [float(i) for i in range(10)]

        def batches_until_30(loader, seen, stop=None):
            wrapped = fabric.setup_dataloaders(loader)
            while len(seen) < 30:
                for batch in wrapped:
                    seen.append(batch.item())
                    if len(seen) == stop:
                        save_checkpoint(tmp_path, step=stop, model=model, loaders=loader)
            return seen

        whole = batches_until_30(ResumableDataLoader(samples, shuffle=True, seed=1), [], stop)
        again = ResumableDataLoader(samples, shuffle=True, seed=1)
        load_checkpoint(tmp_path).restore(model=model, loaders=again)
        assert batches_until_30(again, whole[:stop]) == whole
        assert len({tuple(whole[i : i + 10]) for i in (0, 10, 20)}) == 3


def test_what_there_is_none_of_may_be_none(tmp_path):
    model = nn.Linear(2, 1)
    nothing = {"optimizers": None, "schedulers": None, "loaders": None}
    saved = save_checkpoint(tmp_path, step=1, model=model, **nothing)
    weights = model.weight.detach().clone()
    nn.init.zeros_(model.weight)
    load_checkpoint(saved).restore(model=model, **nothing)
    assert model.weight.equal(weights)

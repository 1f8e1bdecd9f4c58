"""What a user can get wrong with train.py: one line that says what to do, an exit code, no traceback, nothing lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from neuromanifold_gpt.cli import train_main
from neuromanifold_gpt.training.config import TrainConfig
from neuromanifold_gpt.training.errors import ConfigError

from .train_process import SMALL, data_files

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run train.py's main in this process: exit code, standard output, standard error."""

    def call(out_dir: Path, *arguments: str, **flags: object) -> tuple[int, str, str]:
        settings = {**SMALL, "max_iters": 4, "save_interval": 2, "eval_interval": 0, "out_dir": out_dir, **flags}
        code = train_main([*(f"--{key}={value}" for key, value in settings.items()), *arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no_such_flag=1"], "no_such_flag"),
        (["--max_iters=many"], "max_iters"),
        (["--max_iters=0"], "max_iters: expected more than 0, found 0"),
        (["--dtype=int8"], "dtype"),
        (["--dtype=float16"], "float16 needs an accelerator"),
        (["--n_head=3"], "n_embd: expected a multiple of n_head=3"),
        (["--lr_decay_iters=10"], "lr_decay_iters: expected more than the 10 warmup_iters"),
        (["--save_model_only=True", "--save_separate_optimizer=False"], "save_model_only"),
        (["--device=abacus"], "device"),
        (["--config=/no/such/file.yaml"], "/no/such/file.yaml"),
        (["--batch_size=10000000"], "batch_size: expected at most"),
        (["--out_dir="], "out_dir"),
    ],
)
def test_wrong_flags_give_one_line_and_exit_code_2(flags: list[str], message: str, run: Run, tmp_path: Path):
    code, _, stderr = run(tmp_path, *flags)
    assert code == 2
    assert len(errors(stderr)) == 1
    assert message in errors(stderr)[0]


def test_an_out_dir_that_cannot_be_written_is_named(run: Run, tmp_path: Path):
    (tmp_path / "file").write_text("not a directory")
    code, _, stderr = run(tmp_path / "file")
    assert code == 2
    assert str(tmp_path / "file") in errors(stderr)[0]
    assert (tmp_path / "file").read_text() == "not a directory"


@pytest.mark.parametrize("name", ["missing", "empty.txt", "pickle.pkl", "folder"])
def test_a_wrong_dataset_is_named(name: str, run: Run, tmp_path: Path):
    (tmp_path / "empty.txt").touch()
    torch.save({"a": 1}, tmp_path / "pickle.pkl")
    (tmp_path / "folder").mkdir()
    code, _, stderr = run(tmp_path / "out", dataset=tmp_path / name)
    assert code == 1
    assert len(errors(stderr)) == 1
    assert name in errors(stderr)[0]


def test_a_model_of_another_size_is_refused_and_the_run_is_kept(run: Run, tmp_path: Path):
    assert run(tmp_path)[0] == 0
    before = data_files(tmp_path)
    code, _, stderr = run(tmp_path, n_embd=64, max_iters=8)
    assert code == 2
    assert "n_embd was 32 in the checkpoint and is 64 now" in errors(stderr)[0]
    assert data_files(tmp_path) == before


def test_settings_that_change_the_trajectory_are_said_in_one_line_each_and_hold(run: Run, tmp_path: Path):
    assert run(tmp_path)[0] == 0
    code, stdout, _ = run(tmp_path, max_iters=6, learning_rate=0.5, batch_size=5, warmup_iters=2)
    assert code == 0
    said = [line.strip() for line in stdout.splitlines() if line.startswith("  changed:")]
    assert [line.split()[1] for line in said] == ["batch_size", "learning_rate", "warmup_iters"]
    assert "learning_rate was 0.001 in the checkpoint and is 0.5 now" in said[1]
    assert "learning rate 5.00e-01" in stdout
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[2] for row in rows[1:]] == ["0.0001", "0.0002", "0.0003", "0.0004", "0.5", "0.5"]


def test_settings_of_the_trainer_are_said_once_at_most(run: Run, tmp_path: Path):
    assert run(tmp_path, eval_interval=2)[0] == 0
    code, stdout, stderr = run(tmp_path, max_iters=6, eval_interval=3, gradient_accumulation_steps=2)
    assert code == 0
    assert [line.split()[1] for line in stdout.splitlines() if line.startswith("  changed:")] == [
        "gradient_accumulation_steps"
    ]
    assert "settings of the trainer" not in stdout + stderr


def test_another_text_is_noticed(run: Run, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("To stop is not to lose. " * 400)
    assert run(tmp_path / "out", dataset=text)[0] == 0
    text.write_text("To stop is not to lose! " * 400)
    code, stdout, _ = run(tmp_path / "out", dataset=text, max_iters=6)
    assert code == 0
    assert "changed: corpus_digest was" in stdout


def test_model_only_checkpoints_are_not_trained_over(run: Run, tmp_path: Path):
    assert run(tmp_path, save_model_only=True)[0] == 0
    assert not list(tmp_path.glob("*-optimizer.pt"))
    before = data_files(tmp_path)
    code, _, stderr = run(tmp_path, max_iters=8)
    assert code == 2
    assert "model-only" in errors(stderr)[0]
    assert data_files(tmp_path) == before


@pytest.mark.parametrize("separate", [True, False])
def test_the_other_kind_of_checkpoint_is_not_trained_over(separate: bool, run: Run, tmp_path: Path):
    assert run(tmp_path, save_separate_optimizer=separate)[0] == 0
    before = data_files(tmp_path)
    code, _, stderr = run(tmp_path, save_separate_optimizer=not separate, max_iters=8)
    assert code == 2
    assert f"--save_separate_optimizer={separate}" in errors(stderr)[0]
    assert data_files(tmp_path) == before


@pytest.mark.filterwarnings("always::neuromanifold_gpt.checkpoint.errors.CheckpointWarning")
def test_only_damaged_checkpoints_are_not_trained_over(run: Run, tmp_path: Path):
    assert run(tmp_path)[0] == 0
    for path in tmp_path.glob("*-model.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    code, _, stderr = run(tmp_path)
    assert code == 2
    assert "no intact checkpoint" in errors(stderr)[0]


def test_a_checkpoint_of_another_program_is_named(run: Run, tmp_path: Path):
    from neuromanifold_gpt import save_checkpoint

    model = torch.nn.Linear(2, 2)
    save_checkpoint(tmp_path, step=3, model=model, optimizers=torch.optim.SGD(model.parameters(), lr=0.1))
    code, _, stderr = run(tmp_path)
    assert code == 2
    assert "not written by train.py" in errors(stderr)[0]


def test_help_documents_every_field(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        train_main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in fields(TrainConfig):
        described = re.search(rf"--{field.name} [A-Z_{{a-z,0-9}}]+ (\S.*?)\((?:required, )?type:", text)
        assert described, field.name
        assert len(described[1]) > 10, field.name


def test_the_configuration_survives_a_round_trip_through_yaml(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, run: Run
):
    with pytest.raises(SystemExit):
        train_main(["--learning_rate=0.25", "--print_config"])
    path = tmp_path / "settings.yaml"
    path.write_text(capfd.readouterr().out)
    assert "learning_rate: 0.25" in path.read_text()
    flags = [f"--{key}={value}" for key, value in SMALL.items()]
    assert (
        train_main([f"--config={path}", *flags, "--max_iters=1", "--warmup_iters=1", f"--out_dir={tmp_path / 'out'}"])
        == 0
    )
    assert (tmp_path / "out/metrics.csv").read_text().splitlines()[1].split(",")[2] == "0.25"


def test_zero_is_refused_where_it_makes_no_sense_only():
    for name in ("batch_size", "n_layer", "learning_rate", "log_interval", "eval_iters", "block_size"):
        with pytest.raises((ConfigError, ValueError), match=name):
            TrainConfig(**{name: 0})
    TrainConfig(dropout=0.0, warmup_iters=0, weight_decay=0.0, eval_interval=0, grad_clip=0.0, sample_tokens=0, seed=-1)


@pytest.mark.filterwarnings("ignore:passing over")
@pytest.mark.parametrize(
    ("part", "value", "code"),
    [
        ("loops", "x", 1),
        ("exact_resume", 7, 1),
        ("callbacks", [1], 1),
        ("lr_schedulers", None, 1),
        ("pytorch-lightning_version", "\x1b[2J", 1),
        ("global_step", torch.ones(3), 2),
        ("hyper_parameters", {"model": "x", "training": {}}, 2),
        ("hyper_parameters", {"model": {1: 2}, "training": {}}, 2),
    ],
)
def test_a_checkpoint_with_something_else_in_it_is_one_line(
    part: str, value: object, code: int, run: Run, tmp_path: Path
):
    flags = {"save_separate_optimizer": False, "save_interval": 4}
    assert run(tmp_path, **flags)[0] == 0
    (path,) = tmp_path.glob("*.ckpt")
    torch.save({**torch.load(path), part: value}, path)
    found, _, stderr = run(tmp_path, max_iters=6, **flags)
    assert found == code
    assert len(errors(stderr)) == 1
    assert path.name in errors(stderr)[0]
    assert "\x1b" not in stderr


def test_settings_of_a_file_are_said_briefly_and_not_to_the_terminal(run: Run, tmp_path: Path):
    flags = {"save_separate_optimizer": False, "save_interval": 4}
    assert run(tmp_path, **flags)[0] == 0
    (path,) = tmp_path.glob("*.ckpt")
    content = torch.load(path)
    content["hyper_parameters"]["training"].update({"learning_rate": "a" * 10**6, "\x1b[2J": 1})
    torch.save(content, path)
    code, output, stderr = run(tmp_path, max_iters=6, **flags)
    assert code == 0, stderr
    assert "changed: learning_rate was 'aaa" in output
    assert len(output) < 2000
    assert "\x1b" not in output

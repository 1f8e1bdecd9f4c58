"""The documentation is executed."""

from __future__ import annotations

import re
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from neuromanifold_gpt import cli, list_checkpoints

from . import warm_process
from .warm_process import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
DOCUMENTS = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("benchmarks/*/*.md")]


def python_block(heading: str) -> str:
    """The code under a heading of the README."""
    found = re.search(rf"## {heading}\n+```python\n(.*?)```", README, flags=re.DOTALL)
    assert found, heading
    return found[1]


def regression_data() -> torch.utils.data.TensorDataset:
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))


class Regression(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


def test_the_lightning_example_trains_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = python_block("Any Lightning module")
    assert len(code.strip().splitlines()) <= 10
    code = code.replace("10_000", "LAST").replace("num_workers=4", "num_workers=0").replace("500", "5")
    monkeypatch.chdir(tmp_path)
    for last in (10, 20):
        exec(code, {"dataset": regression_data(), "module": Regression(), "LAST": last})
        assert [checkpoint.step for checkpoint in list_checkpoints("out")][-1] == last


def test_the_plain_loop_example_trains_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = python_block("Any plain loop")
    assert len(code.strip().splitlines()) <= 15
    code = code.replace("10_000", "LAST").replace("500", "5")
    monkeypatch.chdir(tmp_path)
    steps = []

    def train_step(model: Any, optimizer: Any, scheduler: Any, batch: Any) -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
        optimizer.step()
        scheduler.step()
        steps.append(batch)

    for last in (10, 20):
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.AdamW(model.parameters())
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        names = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "train_step": train_step}
        exec(code, {"dataset": regression_data(), "LAST": last, **names})
    assert [checkpoint.step for checkpoint in list_checkpoints("out")][-1] >= 20


def commands() -> list[list[str]]:
    """Every command of the documents that is a program of ours."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", document.read_text(), flags=re.DOTALL):
            found += [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]
    return [words for words in found if words]


@lru_cache
def help_of(program: str) -> str:
    return warm_process.run(program, "--help").stdout


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_of_the_documents_exists(words: list[str]):
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif words[0] == "python":
        assert (REPOSITORY / words[1]).is_file()
        flags = [word.split("=")[0] for word in words[2:] if word.startswith("--")]
        if flags:
            text = help_of(words[1])
            assert all(flag in text for flag in flags)
    elif words[0] == "neuromanifold":
        with pytest.raises(SystemExit) as ended:
            cli.main([words[1], "--help"])
        assert ended.value.code == 0
    else:
        assert words[0] in ("pytest", "ls", "cmp", ".venv/bin/pre-commit"), words


def test_links_between_documents_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"

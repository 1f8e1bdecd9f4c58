"""The six-phase test: training stops, and resumes exactly, from a separated checkpoint.

``python test_training_resumption.py`` runs it and exits with 0 or 1; pytest collects it as well. It uses nothing but
the front door of the package. TRAINING_RESUMPTION_TEST.md describes it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuromanifold_gpt import Checkpoint, load_checkpoint, save_checkpoint, verify_checkpoint

STEPS = 50  # per half
WARMUP_STEPS = 10
WIDTH = 256
BATCH_SIZE = 8
RULE = "=" * 70


@dataclass
class Training:
    """A model of 3 layers that learns a fixed target, with everything that has to survive a stop."""

    model: nn.Sequential
    optimizer: torch.optim.AdamW
    scheduler: torch.optim.lr_scheduler.LambdaLR
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)

    @classmethod
    def fresh(cls, seed: int) -> Training:
        """Build model, optimizer and schedule from new random weights."""
        torch.manual_seed(seed)
        layers = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS))
        return cls(model, optimizer, scheduler)

    def run(self, steps: int, inputs: Tensor, targets: Tensor) -> None:
        """Train on batches chosen by the global random number generator, which also drives dropout."""
        for _ in range(steps):
            batch = torch.randint(len(inputs), (BATCH_SIZE,))
            loss = nn.functional.mse_loss(self.model(inputs[batch]), targets[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.learning_rates.append(self.learning_rate)
            self.losses.append(loss.item())
            self.optimizer.step()
            self.scheduler.step()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_tensors(self) -> dict[str, Tensor]:
        """Every tensor of the optimizer, by parameter number and name."""
        state = self.optimizer.state_dict()["state"]
        return {f"{number}/{name}": value for number, entry in state.items() for name, value in entry.items()}

    def groups(self) -> list[dict[str, Any]]:
        """Hyper-parameters of each parameter group."""
        return [{key: value for key, value in group.items() if key != "params"} for group in self._packed_groups()]

    def _packed_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.optimizer.state_dict()["param_groups"]
        return groups


def fixed_task() -> tuple[Tensor, Tensor]:
    """Random inputs and the outputs of a fixed linear map: a loss that can fall. Shapes (64, 256)."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(64, WIDTH, generator=generator)
    return inputs, inputs @ torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5


def difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> tuple[bool, float]:
    """Whether all tensors are equal in every bit, and the largest absolute difference."""
    if left.keys() != right.keys():
        return False, float("inf")
    equal = all(torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left)
    return equal, max((left[name].double() - right[name].double()).abs().max().item() for name in left)


def mark(passed: bool) -> str:
    """A tick or a cross."""
    return "✓" if passed else "✗"


def run_six_phases(directory: Path) -> bool:
    """Run all phases in ``directory``, print what happens, and return whether every check passed."""
    print(f"{RULE}\nTesting Training Resumption with Separated Checkpoints\n{RULE}\n")
    inputs, targets = fixed_task()
    first = _phase_1_train(inputs, targets)
    checkpoint, saved_as_two = _phase_2_save(directory, first)
    resumed, loads = _phase_3_load(checkpoint)
    rate_restored, momentum_restored = _phase_4_verify(first, resumed)
    resumes, continuous = _phase_5_continue(first, resumed, inputs, targets)
    return _phase_6_summary(
        {
            "Separated checkpoints created": saved_as_two,
            "Checkpoint loads with optimizer": loads,
            "Learning rate correctly restored": rate_restored,
            "Momentum buffers present": momentum_restored,
            "Training resumed successfully": resumes,
            "Loss continuity maintained": continuous,
        }
    )


def _phase_1_train(inputs: Tensor, targets: Tensor) -> Training:
    print(f"[Phase 1] Running initial training for {STEPS} steps...")
    training = Training.fresh(seed=42)
    training.run(STEPS, inputs, targets)
    print(f"  ✓ Completed {STEPS} training steps")
    print(f"  - Initial loss: {training.losses[0]:.6f}")
    print(f"  - Final loss: {training.losses[-1]:.6f}")
    print(f"  - Initial LR: {training.learning_rates[0]:.2e}")
    print(f"  - Final LR: {training.learning_rates[-1]:.2e}")
    print(f"  - Optimizer state keys: {len(training.state_tensors())}\n")
    return training


def _phase_2_save(directory: Path, training: Training) -> tuple[Checkpoint, bool]:
    print(f"[Phase 2] Saving separated checkpoint at step {STEPS}...")
    checkpoint = save_checkpoint(
        directory, step=STEPS, model=training.model, optimizers=training.optimizer, schedulers=training.scheduler
    )
    assert checkpoint.optimizer_path is not None
    files = {"Model": checkpoint.model_path, "Optimizer": checkpoint.optimizer_path}
    expected = {f"checkpoint-step{STEPS:06d}-model.pt", f"checkpoint-step{STEPS:06d}-optimizer.pt"}
    created = {path.name for path in files.values() if path.is_file()} == expected
    print(f"  {mark(created)} Saved separated checkpoint")
    for name, path in files.items():
        print(f"  - {name}: {path} ({path.stat().st_size / 2**20:.2f} MB)")
    print()
    return checkpoint, created


def _phase_3_load(checkpoint: Checkpoint) -> tuple[Training, bool]:
    print("[Phase 3] Loading checkpoint and resuming training...")
    intact = verify_checkpoint(checkpoint).tensors > 0
    loaded = load_checkpoint(checkpoint.model_path)
    complete = intact and loaded.global_step == STEPS and len(loaded.optimizer_states or []) == 1
    print(f"  {mark(complete)} Loaded checkpoint")
    print(f"  - Global step: {loaded.global_step}")
    print(f"  - Optimizer states: {len(loaded.optimizer_states or [])}")
    training = Training.fresh(seed=999)  # other weights and another random state than at the save
    loaded.restore(model=training.model, optimizers=training.optimizer, schedulers=training.scheduler)
    print("  ✓ Restored model and optimizer state")
    print(f"  - Current LR: {training.learning_rate:.2e}\n")
    return training, complete


def _phase_4_verify(saved: Training, restored: Training) -> tuple[bool, bool]:
    print("[Phase 4] Verifying optimizer state restoration...")
    same_state, largest = difference(saved.state_tensors(), restored.state_tensors())
    same_groups = saved.groups() == restored.groups()
    same_rate = saved.learning_rate == restored.learning_rate
    names = {name.split("/")[1] for name in restored.state_tensors()}
    has_momentum = {"exp_avg", "exp_avg_sq"} <= names
    perfect = same_state and same_groups
    print(f"  {mark(perfect)} Optimizer state {'perfectly restored!' if perfect else 'differs!'}")
    print(f"  - LR at step {STEPS}: {saved.learning_rate:.2e}")
    print(f"  - LR after load: {restored.learning_rate:.2e}")
    print(f"  - LR matches: {mark(same_rate)}")
    print(f"  - Momentum buffers present: {mark(has_momentum)}")
    print(f"  - State tensors equal in every bit: {mark(same_state)} (largest difference {largest:g})")
    print(f"  - Parameter groups equal: {mark(same_groups)}\n")
    return same_rate and same_groups, has_momentum and same_state


def _phase_5_continue(first: Training, resumed: Training, inputs: Tensor, targets: Tensor) -> tuple[bool, bool]:
    print(f"[Phase 5] Continuing training for {STEPS} more steps...")
    resumed.run(STEPS, inputs, targets)
    finite = all(torch.isfinite(torch.tensor(resumed.losses)))
    print(f"  {mark(finite)} Completed {STEPS} more training steps")
    print(f"  - First loss: {resumed.losses[0]:.6f}")
    print(f"  - Final loss: {resumed.losses[-1]:.6f}")
    print(f"  - First LR: {resumed.learning_rates[0]:.2e}")
    print(f"  - Final LR: {resumed.learning_rates[-1]:.2e}")

    unstopped = Training.fresh(seed=42)
    unstopped.run(2 * STEPS, inputs, targets)
    same_weights, largest = difference(unstopped.model.state_dict(), resumed.model.state_dict())
    same_state, largest_state = difference(unstopped.state_tensors(), resumed.state_tensors())
    same_rates = unstopped.learning_rates == first.learning_rates + resumed.learning_rates
    same_losses = unstopped.losses == first.losses + resumed.losses
    falls = resumed.losses[-1] < first.losses[0]
    print(f"  Compared with a run of {2 * STEPS} steps that was never stopped:")
    print(f"  - Weights equal in every bit: {mark(same_weights)} (largest difference {largest:g})")
    print(f"  - Optimizer state equal in every bit: {mark(same_state)} (largest difference {largest_state:g})")
    print(f"  - Loss of every step equal in every bit: {mark(same_losses)}")
    print(f"  - Learning rate of every step equal in every bit: {mark(same_rates)}\n")
    return finite and same_weights and same_state and same_rates, same_losses and falls


def _phase_6_summary(checks: dict[str, bool]) -> bool:
    print(f"{RULE}\nVerification Summary\n{RULE}")
    for number, (name, passed) in enumerate(checks.items(), start=1):
        print(f"{number}. {name}: {'✓ PASS' if passed else '✗ FAIL'}")
    print(RULE)
    if all(checks.values()):
        print("\n✅ ALL CRITICAL CHECKS PASSED\n")
        print("Training resumption with separated checkpoints is working correctly!")
        print("Optimizer state (learning rate, momentum buffers) is properly restored.")
    else:
        print(f"\n❌ FAILED: {', '.join(name for name, passed in checks.items() if not passed)}")
    return all(checks.values())


def main() -> int:
    """Run the phases in a temporary directory, remove it, and return the exit code."""
    directory = Path(tempfile.mkdtemp(prefix="test_resumption_"))
    try:
        passed = run_six_phases(directory)
    finally:
        shutil.rmtree(directory)
    print(f"\nCleaned up test directory: {directory}")
    return 0 if passed else 1


def test_six_phases(tmp_path: Path) -> None:
    """All six checks pass."""
    assert run_six_phases(tmp_path)


if __name__ == "__main__":
    sys.exit(main())

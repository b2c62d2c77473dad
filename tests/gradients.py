"""The gradients of a first optimizer step; by two processes: `torchrun … -m tests.gradients FOLDER POOL`."""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from presel.data.llava import read_training_file
from presel.models.fine_tune import fine_tune
from presel.models.hardware import Hardware
from presel.models.loggers import TrainingLogger
from presel.models.lvlm import Lvlm
from presel.models.tune import Tune
from presel.models.tuner import Tuner


class GradientTuner(Tuner):
    """Leaves the gradients of its first optimizer step, and nothing else."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.trainer.global_step:
            self.gradients = {
                name: weight.grad.clone()
                for name, weight in self.named_parameters()
                if weight.grad is not None
            }

    def save_result(self, folder: Path) -> None:
        if self.trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(self.gradients, folder / "gradients.safetensors")


def first_gradients(folder: Path, pool_folder: Path, micro_batch_size: int, hardware: Hardware) -> None:
    """Leaves `gradients.safetensors`, after a step of 32 samples (and one of 8)."""
    recipe = Tune(
        lr=1e-3,
        projector_lr=1e-4,
        batch_size=32,
        micro_batch_size=micro_batch_size,
        lora_rank=4,
        lora_alpha=8,
        lora_dropout=0.0,
    )
    fine_tune(
        Lvlm(path="builtin:digit_llava", template="plain", max_length=256),
        recipe,
        hardware,
        read_training_file(pool_folder / "pool.json")[:40],
        pool_folder / "images",
        folder=folder,
        seed=3,
        workers=0,
        logger=TrainingLogger().create(folder, "gradients"),
        make_tuner=GradientTuner,
    )


if __name__ == "__main__":
    two = Hardware(accelerator="cpu", strategy="ddp", devices=int(os.environ["WORLD_SIZE"]))
    first_gradients(Path(sys.argv[1]), Path(sys.argv[2]), 4, two)
    # Without cleanup, as processes of a run: threads of torch's libraries may abort one at its regular exit.
    os._exit(0)

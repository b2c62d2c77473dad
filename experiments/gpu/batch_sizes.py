"""Optimizer steps of growing size, up to what fits into the device's memory.

    python experiments/gpu/batch_sizes.py [--shape 7b|qwen_3b] [--sizes 2 4 8] [--recompute] [--change narrow]

Tunes a randomly initialized model in bf16 by LoRA of rank 128, with the product's own tuner, a micro-batch a
step. `--change` tries what presel does not do: `narrow` keeps the inputs of LoRA in bf16, which PEFT converts
to float32 before dropout; `compiled` compiles each layer. Start-up is outside the clocks, which count from
the end of the first step. Utilization is defined in `presel.models.throughput`.
"""

import argparse
import gc
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch
from common import Row, Rows, peak_memory, table
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from samples import conversations, photographs
from shapes import SHAPES, compile_layers, random_model

from presel.data.llava import Record
from presel.errors import PreselError
from presel.models.fine_tune import fine_tune
from presel.models.hardware import Hardware
from presel.models.loggers import TrainingLogger
from presel.models.lvlm import Lvlm
from presel.models.tune import Tune
from presel.models.tuner import Tuner

_DIFFERENT_IMAGES = 16


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8], help="samples a step, ascending")
    parser.add_argument("--steps", type=int, default=4, help="steps that count")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    parser.add_argument("--change", choices=CHANGES, default="none")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="file to which each row is appended at once")
    options = parser.parse_args()
    rows = Rows(options.rows)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options, rows)
    print(table(rows))


def measure(folder: Path, options: argparse.Namespace, rows: Rows) -> None:
    """Tunes once with each size, until one does not fit."""
    lvlm = random_model(folder / "model", options.shape)
    images = photographs(folder / "images", _DIFFERENT_IMAGES)
    for size in options.sizes:
        records = conversations(list(islice(cycle(images), size * (1 + options.steps))))
        what = {"samples": size, "recompute": options.recompute, "change": options.change}
        peak_memory()
        try:
            measured = tune(lvlm, records, folder, size, options)
        except (PreselError, torch.OutOfMemoryError) as error:
            rows.add("does not fit", **what, error=str(error))
            break
        rows.add("step", **what, **measured, memory_gb=peak_memory())
        gc.collect()
        torch.cuda.empty_cache()


def tune(lvlm: Lvlm, records: list[Record], folder: Path, size: int, options: argparse.Namespace) -> Row:
    """Measures a fine-tune with steps of `size` samples."""
    settings = Tune(
        lr=2e-4,
        projector_lr=2e-5,
        batch_size=size,
        micro_batch_size=size,
        lora_rank=options.rank,
        lora_alpha=2 * options.rank,
        gradient_checkpointing=options.recompute,
    )
    measured = fine_tune(
        lvlm,
        settings,
        Hardware(),
        records,
        folder / "images",
        folder=folder / "run",
        seed=0,
        workers=options.workers,
        logger=TrainingLogger().create(folder / "run", "run"),
        make_tuner=partial(UnsavedTuner, CHANGES[options.change]),
    )
    kept = ("samples_per_second", "response_tokens_per_second", "utilization")
    return {"seconds": size / measured["samples_per_second"]} | {key: measured[key] for key in kept}


class UnsavedTuner(Tuner):
    """The tuner with a change to its model; it does not save the result, which has more than a gigabyte."""

    def __init__(self, change: Callable[[PeftModel], None], model: PeftModel, *arguments: object) -> None:
        """Changes the model."""
        super().__init__(model, *arguments)
        change(model)

    def save_result(self, folder: Path) -> None:
        """Does nothing."""


def narrow(model: PeftModel) -> None:
    """Keeps the inputs of LoRA in their own precision; autocasting converts LoRA's weights to it."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


CHANGES: dict[str, Callable[[PeftModel], None]] = {
    "none": lambda model: None,
    "narrow": narrow,
    "compiled": compile_layers,
}

if __name__ == "__main__":
    main()

"""The tuner beside a plain Hugging Face `Trainer`: same model, samples, batch size and LoRA, in one run.

    python experiments/benchmarks/tuning.py [--shape cpu|7b] [--samples 64] [--longest 60]

Both tune the same randomly initialized LLaVA, with images of 576 tokens, for one epoch. `--longest` is the
most words of a question or an answer: 1 gives samples of one length, 60 mixed lengths. The bound is bare
steps on the tuner's own batches, ready in memory. Start-up is outside the clocks: all count from the end of
the first step. Prints a table and, last, one line of JSON; its largest difference is that of a batch's loss
from the model's own.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import Row, last_line, table
from samples import conversations, photographs
from shapes import random_model
from torch.optim import AdamW
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from presel.data.llava import Record
from presel.models.batching import plan_epoch
from presel.models.conversations import IGNORED, ConversationEncoder, Example
from presel.models.fine_tune import fine_tune
from presel.models.hardware import Hardware, device_for
from presel.models.loggers import TrainingLogger
from presel.models.losses import token_losses
from presel.models.lvlm import Lvlm
from presel.models.tune import Tune
from presel.models.tuner import add_lora


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("cpu", "7b"), default="cpu")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--longest", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rank", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Tunes once with each."""
    lvlm = random_model(folder / "model", options.shape)
    records = conversations(photographs(folder / "images", options.samples), options.longest)
    settings = Tune(
        lr=2e-4,
        projector_lr=2e-5,
        batch_size=options.batch_size,
        micro_batch_size=options.batch_size,
        lora_rank=options.rank,
        lora_alpha=2 * options.rank,
        gradient_checkpointing=options.shape == "7b",
    )
    plain = plain_samples_per_second(lvlm, records, folder, settings, options.workers)
    ours = fine_tune(
        lvlm,
        settings,
        Hardware(),
        records,
        folder / "images",
        folder=folder / "ours",
        seed=0,
        workers=options.workers,
        logger=TrainingLogger().create(folder / "ours", "ours"),
    )
    bare, difference = bare_samples_per_second(lvlm, records, folder, settings)
    ratio, bound = ours["samples_per_second"] / plain, bare / plain
    rows: list[Row] = [
        {"what": "Trainer", "samples/s": plain},
        {
            "what": "presel's tuner",
            "samples/s": ours["samples_per_second"],
            "response tokens/s": ours["response_tokens_per_second"],
            "utilization": ours["utilization"],
            "ours is faster by": ratio,
        },
        {"what": "bare steps, ready batches", "samples/s": bare},
    ]
    print(table(rows))
    print(
        last_line(
            shape=options.shape,
            longest=options.longest,
            ratio=ratio,
            bound=bound,
            fraction_of_bound=ratio / bound,
            largest_difference=difference,
            **ours,
        )
    )


class Samples(Dataset[Record]):
    """Records, for the plain trainer."""

    def __init__(self, records: list[Record]) -> None:
        """Takes the records."""
        self._records = records

    def __len__(self) -> int:
        """Counts them."""
        return len(self._records)

    def __getitem__(self, row: int) -> Record:
        """One of them."""
        return self._records[row]


class Clock(TrainerCallback):
    """Counts steps from the end of the first one."""

    def __init__(self) -> None:
        """Starts without a time."""
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Takes the time."""
        self.ends.append(time.perf_counter())


def plain_samples_per_second(
    lvlm: Lvlm, records: list[Record], folder: Path, settings: Tune, workers: int
) -> float:
    """Tunes by `transformers.Trainer`, as its documentation does."""
    encoder = ConversationEncoder(lvlm)
    clock = Clock()
    model = add_lora(lvlm.load_model(), lvlm, settings)
    if settings.gradient_checkpointing:
        model.enable_input_require_grads()

    def collate(batch: list[Record]) -> dict[str, torch.Tensor]:
        return encoder.batch([Example(one.paths(folder / "images"), one.conversations) for one in batch])

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=settings.micro_batch_size,
            num_train_epochs=1,
            learning_rate=settings.lr,
            lr_scheduler_type="cosine",
            bf16=lvlm.dtype == "bfloat16",
            gradient_checkpointing=settings.gradient_checkpointing,
            dataloader_num_workers=workers,
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Samples(records),
        data_collator=collate,
        callbacks=[clock],
    )
    trainer.train()
    assert len(clock.ends) == math.ceil(len(records) / settings.micro_batch_size)
    return (len(records) - settings.micro_batch_size) / (clock.ends[-1] - clock.ends[0])


def bare_samples_per_second(
    lvlm: Lvlm, records: list[Record], folder: Path, settings: Tune
) -> tuple[float, float]:
    """Steps without anything around them; also the first loss's difference from the model's own."""
    encoder = ConversationEncoder(lvlm)
    examples = [Example(one.paths(folder / "images"), one.conversations) for one in records]
    prompts = [encoder.tokens(one.conversations, images=one.images) for one in examples]
    lengths = [len(prompt.ids) for prompt in prompts]
    responses = [sum(label != IGNORED for label in prompt.labels) for prompt in prompts]
    device = device_for("auto")
    model = add_lora(lvlm.load_model(), lvlm, settings).to(device).train()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    optimizer = AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=settings.lr)
    size = settings.micro_batch_size
    plan = plan_epoch([one.id for one in records], lengths, responses, size, size, seed=0)
    batches = [encoder.batch([examples[row] for row in batch.rows]) for (batch,) in plan]
    ends: list[float] = []
    for batch in batches:
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=lvlm.dtype == "bfloat16"):
            loss = token_losses(model, **batch).sum() / (batch["labels"] != IGNORED).sum()
            if not ends:
                with torch.no_grad():
                    difference = abs(float(loss) - float(model(**batch).loss))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return (len(records) - size) / (ends[-1] - ends[0]), difference


if __name__ == "__main__":
    main()

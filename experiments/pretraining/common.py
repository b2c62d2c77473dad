"""What both pretraining scripts share: batches of scenes, the schedule, the loop and its log."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from presel.digits.scenes import Contents, Scenes, render, sample

log = logging.getLogger("pretraining")

# Both processors normalise with these, so the models see what from_pretrained's processors give them.
PIXEL_MEAN = 0.5
PIXEL_STD = 0.5


def process_rank() -> int:
    """Number of this process among those that train together."""
    return dist.get_rank() if dist.is_initialized() else 0


def scene_batches(seed: int, size: int, contents: Contents | None = None) -> Iterator[Scenes]:
    """Endless fresh scenes, others in each process; contents are uniform unless given."""
    rng = np.random.default_rng([seed, process_rank()])
    contents = contents or Contents.zipf(None, 0.0)
    while True:
        yield sample(rng, size, contents)


def pixel_values(scenes: Scenes) -> Tensor:
    """Rendered scenes as a model's input, (n, 3, 48, 48)."""
    return normalise(render(scenes))


def normalise(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures (n, 48, 48, 3) in 0..255 -> (n, 3, 48, 48)."""
    scaled = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)
    return scaled.sub_(PIXEL_MEAN).div_(PIXEL_STD).contiguous()


def train(
    model: nn.Module,
    step_loss: Callable[[], Tensor],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.01,
    report: Callable[[], str] | None = None,
    report_every: int = 100,
    save: Callable[[], None] | None = None,
) -> None:
    """AdamW with warm-up over 3 % of the steps and a cosine down to a twentieth.

    Args:
        model: Its parameters that require gradients are trained.
        step_loss: Draws a batch and returns its loss.
        steps: Optimiser steps.
        learning_rate: Peak.
        weight_decay: On matrices only.
        report: Measures quality for the log.
        report_every: Steps between two lines of the log, and between two saves.
        save: Writes the model away.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    warmup = max(1, steps * 3 // 100)

    def factor(step: int) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))
        return min((step + 1) / warmup, 0.05 + 0.95 * cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    start, running = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        loss = step_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        _average_gradients(trained)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        running += loss.item()
        if step % report_every == 0 or step == steps:
            count = (step - 1) % report_every + 1
            model.eval()
            quality = report() if report and not process_rank() else ""
            model.train()
            seconds = time.monotonic() - start
            log.info("step %d  %.0f s  loss %.4f  %s", step, seconds, running / count, quality)
            running = 0.0
            if save and not process_rank():
                save()


def _average_gradients(trained: list[nn.Parameter]) -> None:
    """One exchange for all parameters; DistributedDataParallel would hide the models' own methods."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in trained if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    means = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def log_to(path: Path) -> None:
    """Sends the log to the terminal and, appended, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(path)],
        force=True,
    )

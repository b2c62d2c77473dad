"""What the pretraining scripts share: batches of scenes, the schedule, the loop and its log."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil

from presel.data.digits.scenes import IMAGE_SIZE, Contents, Scenes, render_scenes, sample

log = logging.getLogger("pretraining")

# All processors normalize with these, so the models see what from_pretrained's processors give them.
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
    return normalize(render_scenes(scenes))


def normalize(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures (n, 48, 48, 3) in 0..255 -> (n, 3, 48, 48)."""
    scaled = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)
    return scaled.sub_(PIXEL_MEAN).div_(PIXEL_STD).contiguous()


def train(
    model: nn.Module,
    step_loss: Callable[[], Tensor],
    *,
    steps: int,
    learning_rate: float,
    report: Callable[[], str] | None = None,
    report_every: int = 100,
    save: Callable[[], None] | None = None,
) -> None:
    """Muon on hidden matrices and AdamW on the rest; warm-up over 3 % of the steps, a cosine to a twentieth.

    On the language phase Muon's loss after 100 steps is AdamW's after 250 (`experiments/LOG.md`).

    Args:
        model: Its parameters that require gradients are trained.
        step_loss: Draws a batch and returns its loss.
        steps: Optimizer steps.
        learning_rate: Peak of Muon's; AdamW's is 0.4 of it.
        report: Measures quality for the log.
        report_every: Steps between two lines of the log, and between two saves.
        save: Writes the model away.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = [p for name, p in trained.items() if p.ndim == 2 and "embed" not in name and "head" not in name]
    others = [p for p in trained.values() if all(p is not matrix for matrix in hidden)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(hidden, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.4 * learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    warmup = max(1, steps * 3 // 100)

    def factor(step: int) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))
        return min((step + 1) / warmup, 0.05 + 0.95 * cosine)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    start, running = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        loss = step_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        _average_gradients(trained.values())
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
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


def _average_gradients(trained: Iterable[nn.Parameter]) -> None:
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


def clip_image_processor() -> CLIPImageProcessorPil:
    """The processor of scenes for models of the CLIP and LLaVA kind: nothing is cropped."""
    return CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )


def log_to(path: Path) -> None:
    """Sends the log to the terminal and, appended, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(path)],
        force=True,
    )

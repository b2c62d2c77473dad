"""Self-supervised pretraining of the small DINOv2 that ships as `presel/assets/digit_dinov2`.

Command: `python -m experiments.pretraining.dinov2 --out presel/assets/digit_dinov2`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from experiments.pretraining.common import PIXEL_MEAN, PIXEL_STD, log, log_to, normalize, scene_batches, train
from presel.data.digits.scenes import IMAGE_SIZE, Contents, Scenes, render_scenes, vary_scenes

_TEMPERATURE = 0.15
_SHIFT = 3
# As skewed as a pool, but in other contents, for another seed draws them.
_SKEW = 0.8


def dinov2_config() -> Dinov2Config:
    """A DINOv2 of 0.6 million parameters."""
    return Dinov2Config(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )


class Contrast(nn.Module):
    """The encoder with the head that contrastive training needs and throws away."""

    def __init__(self) -> None:
        """Starts from random weights."""
        super().__init__()
        self.encoder = Dinov2Model(dinov2_config())
        width = self.encoder.config.hidden_size
        self.head = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64))

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, 48, 48) -> unit vectors (n, 64)."""
        return F.normalize(self.head(self.encoder(pixels).last_hidden_state[:, 0]), dim=-1)


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A random view of each picture: shifted, in other light, noisier, with a piece missing."""
    size = len(pixels)
    padded = F.pad(pixels, (_SHIFT,) * 4, mode="reflect")
    left, top = torch.randint(0, 2 * _SHIFT + 1, (2, size, 1), generator=generator)
    span = torch.arange(IMAGE_SIZE)
    rows, columns = (top + span)[:, None, :, None], (left + span)[:, None, None, :]
    view = padded[
        torch.arange(size)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns
    ]
    light = 1 + 0.5 * (torch.rand(size, 3, 1, 1, generator=generator) - 0.5)
    lift = 0.6 * (torch.rand(size, 3, 1, 1, generator=generator) - 0.5)
    view = view * light + lift
    view = view + 0.15 * torch.randn(view.shape, generator=generator)
    hole = torch.randint(0, IMAGE_SIZE - 12, (2, size, 1), generator=generator)
    covered = ((span >= hole) & (span < hole + 12)).float()
    return view * (1 - covered[0][:, None, :, None] * covered[1][:, None, None, :])


def info_nce(first: Tensor, second: Tensor) -> Tensor:
    """Each picture's two views attract, all other pictures repel; (n, d) unit vectors twice."""
    both = torch.cat([first, second])
    similarity = both @ both.T / _TEMPERATURE
    similarity.fill_diagonal_(-torch.inf)
    size = len(first)
    return F.cross_entropy(similarity, torch.arange(2 * size).roll(size))


@torch.no_grad()
def neighbors(encoder: Dinov2Model, scenes: Scenes, seed: int) -> dict[str, float]:
    """How sensible nearest neighbors are.

    Returns:
        The share of pictures whose near-duplicate is their nearest neighbor, and the share of
        neighbors among other scenes with the same background and of cells with the same content.
    """
    again = vary_scenes(np.random.default_rng(seed), scenes)
    features = [encoder(normalize(render_scenes(one))).last_hidden_state[:, 0] for one in (scenes, again)]
    first, second = (F.normalize(feature, dim=-1) for feature in features)
    found = (first @ second.T).argmax(-1) == torch.arange(len(scenes))
    nearest = (first @ first.T).fill_diagonal_(-1).argmax(-1).numpy()
    views = list(scenes.views())
    items = [{(item.cell, item.kind) for item in view.items} for view in views]
    shared = [_overlap(items[a], items[b]) for a, b in enumerate(nearest)]
    chance = [_overlap(items[a], items[a - 1]) for a in range(len(items))]
    return {
        "near-duplicate found": found.float().mean().item(),
        "same background color": float((scenes.tint == scenes.tint[nearest]).mean()),
        "items shared": float(np.mean(shared)),
        "items shared by chance": float(np.mean(chance)),
    }


def _overlap(first: set[tuple[int, str]], second: set[tuple[int, str]]) -> float:
    return len(first & second) / max(len(first), len(second))


def pretrain(out: Path, steps: int, batch_size: int, learning_rate: float, seed: int) -> None:
    """Trains the encoder and writes its folder."""
    torch.manual_seed(seed)
    model = Contrast()
    contents = Contents.zipf(np.random.default_rng(seed), _SKEW)
    batches = scene_batches(seed, batch_size, contents)
    held_out = next(scene_batches(seed + 1, 1000, contents))
    generator = torch.Generator().manual_seed(seed)

    def step_loss() -> Tensor:
        pixels = normalize(render_scenes(next(batches)))
        views = torch.cat([augment(pixels, generator), augment(pixels, generator)])
        return info_nce(*model(views).chunk(2))

    def report() -> str:
        return str({k: round(v, 3) for k, v in neighbors(model.encoder, held_out, seed).items()})

    start = time.monotonic()
    model.train()
    train(model, step_loss, steps=steps, learning_rate=learning_rate, report=report, report_every=50)
    log.info("trained in %.0f s", time.monotonic() - start)
    model.encoder.half().save_pretrained(out)
    BitImageProcessorPil(
        do_resize=True,
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    ).save_pretrained(out)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    log_to(Path("outputs/pretraining/dinov2.log"))
    pretrain(arguments.out, arguments.steps, arguments.batch_size, arguments.learning_rate, arguments.seed)


if __name__ == "__main__":
    main()

"""Phase 1 of the small LLaVA: its vision tower learns from dense labels what stands where."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from experiments.pretraining.common import pixel_values, scene_batches, train
from presel.data.digits.glyphs import GLYPHS
from presel.data.digits.scenes import CELLS, COLORS, IMAGE_SIZE, NO_GLYPH, TEXTURES, TINTS, Scenes

PATCH = 8
_SIDE = IMAGE_SIZE // PATCH
_SIZES = (len(GLYPHS) + 1, len(COLORS), len(TINTS), len(TEXTURES), 4)


def vision_config() -> CLIPVisionConfig:
    """A CLIP tower of 0.5 million parameters, 36 patch tokens a picture."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=128,
    )


class DenseReader(nn.Module):
    """The tower with one linear head that reads, at every patch, the cell in which the patch lies."""

    def __init__(self) -> None:
        """Starts from random weights."""
        super().__init__()
        self.tower = CLIPVisionModel(vision_config())
        self.head = nn.Linear(self.tower.config.hidden_size, sum(_SIZES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(n, 3, 48, 48) -> logits of glyph, color, tint, texture and the box, each (n, 36, classes)."""
        # The states LLaVA reads: the last layer's, without the class token, before the final norm.
        states = self.tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        outputs: tuple[Tensor, ...] = self.head(states).split(_SIZES, dim=-1)
        return outputs


def dense_labels(scenes: Scenes) -> dict[str, Tensor]:
    """Labels by patch: glyph of its cell (15: none), its color and box if any, and the background."""
    size = len(scenes)
    slots = scenes.glyph != NO_GLYPH
    rows = np.nonzero(slots)[0]
    where = (rows, scenes.cell[slots])
    glyph = np.full((size, len(CELLS)), len(GLYPHS))
    color = np.full((size, len(CELLS)), -100)
    box = np.full((size, len(CELLS), 4), np.nan, np.float32)
    glyph[where], color[where], box[where] = scenes.glyph[slots], scenes.color[slots], scenes.boxes[slots]
    patch_cells = cell_of_patch()

    def spread(per_picture: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.repeat(per_picture[:, None], _SIDE**2, axis=1))

    return {
        "glyph": torch.from_numpy(glyph[:, patch_cells]),
        "color": torch.from_numpy(color[:, patch_cells]),
        "tint": spread(scenes.tint),
        "texture": spread(scenes.texture),
        "box": torch.from_numpy(box[:, patch_cells]),
    }


def learn_to_see(steps: int, batch_size: int, learning_rate: float, seed: int) -> CLIPVisionModel:
    """Trains a tower and returns it; the head is thrown away."""
    torch.manual_seed(seed)
    reader = DenseReader()
    batches = scene_batches(seed, batch_size)
    held_out = next(scene_batches(seed + 1, 1000))

    def step_loss() -> Tensor:
        scenes = next(batches)
        return _loss(reader(pixel_values(scenes)), dense_labels(scenes))

    @torch.no_grad()
    def report() -> str:
        outputs, labels = reader(pixel_values(held_out)), dense_labels(held_out)
        found = labels["color"] >= 0
        shares = {
            "glyph": (outputs[0].argmax(-1) == labels["glyph"])[found],
            "empty": (outputs[0].argmax(-1) == labels["glyph"])[~found],
            "color": (outputs[1].argmax(-1) == labels["color"])[found],
            "tint": outputs[2].argmax(-1) == labels["tint"],
            "texture": outputs[3].argmax(-1) == labels["texture"],
        }
        off = (outputs[4] - labels["box"])[found].abs().mean() * IMAGE_SIZE
        return "  ".join(f"{k} {v.float().mean():.3f}" for k, v in shares.items()) + f"  box off {off:.2f} px"

    reader.train()
    train(reader, step_loss, steps=steps, learning_rate=learning_rate, report=report)
    return reader.tower


def cell_of_patch() -> NDArray[np.int64]:
    """The cell in which each of the 36 patches lies, (36,)."""
    patch = np.arange(_SIDE**2)
    per_cell = _SIDE // 3
    return patch // _SIDE // per_cell * 3 + patch % _SIDE // per_cell


def _loss(outputs: tuple[Tensor, ...], labels: dict[str, Tensor]) -> Tensor:
    glyph, color, tint, texture, box = outputs
    found = labels["color"] >= 0
    loss = 5 * F.l1_loss(box[found], labels["box"][found])
    for name, logits in {"glyph": glyph, "color": color, "tint": tint, "texture": texture}.items():
        loss = loss + F.cross_entropy(logits.flatten(0, 1), labels[name].flatten())
    return loss

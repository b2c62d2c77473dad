"""The projector's start: a position becomes a token near the names of the classes that the tower sees there.

The tower was trained to tell 1,000 classes apart, most of which no caption of a few thousand photographs
names. Let l be the tower's logits at a position, and C (classes, width) the embeddings of the names, both
centered. The token z whose products with the names come closest to the logits, argmin |C z - l|² + λ |z|²,
is (CᵀC + λI)⁻¹ Cᵀ l, linear in the tower's features: so it is computed, not trained.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

# Standardized values above minus this pass the GELU nearly unchanged.
_SHIFT = 3.0


class Classes(NamedTuple):
    """The tower's classifier on its first h channels: names, weights (classes, h) and biases (classes,)."""

    names: list[str]
    weight: Tensor
    bias: Tensor


@torch.no_grad()
def named_projector(
    sample: NDArray[np.float16], classes: Classes, embeddings: Tensor, tokenizer: PreTrainedTokenizerBase
) -> nn.Sequential:
    """Two layers with a GELU between, as LLaVA's, that start nearly linear.

    Args:
        sample: Features of some positions, (m, d), on which outputs are scaled to the spread of words.
        classes: The tower's classes.
        embeddings: The language model's embeddings, (vocabulary, width).
        tokenizer: Its tokenizer.
    """
    width, d, head = embeddings.shape[1], sample.shape[1], classes.weight.shape[1]
    # With the space before them, as inside a sentence.
    ids = [tokenizer(f" {name.lower()}", add_special_tokens=False)["input_ids"] for name in classes.names]
    names = torch.stack([embeddings[tokens].mean(dim=0) for tokens in ids])  # (classes, width)
    center = names.mean(dim=0)
    centered = names - center
    gram = centered.T @ centered  # (width, width)
    ridge = gram.diagonal().mean() * torch.eye(width)
    solution = torch.linalg.solve(gram + ridge, centered.T)  # (width, classes)
    weight = solution @ (classes.weight - classes.weight.mean(dim=0))  # (width, h)
    bias = solution @ (classes.bias - classes.bias.mean())  # (width,)
    tokens = torch.from_numpy(sample[:, :head]).float() @ weight.T + bias  # (m, width)
    scale = embeddings.std() / tokens.std()
    mean, deviation = tokens.mean(dim=0), tokens.std(dim=0)  # (width,), (width,)
    first, last = nn.Linear(d, width), nn.Linear(width, width)
    first.weight.zero_()
    first.weight[:, :head] = weight / deviation[:, None]
    first.bias.copy_((bias - mean) / deviation + _SHIFT)
    last.weight.copy_(torch.diag(scale * deviation))
    last.bias.copy_(center + scale * (mean - _SHIFT * deviation))
    return nn.Sequential(first, nn.GELU(), last)

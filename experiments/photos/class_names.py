"""What the tower's classifier adds: a start for the projector, and names of what pictures show.

The projector starts so that a position becomes a token near the names of the classes that are seen there.
The tower was trained to tell 1,000 classes apart, most of which no caption of a few thousand photographs
names. Let l be the tower's logits at a position, and C (classes, width) the embeddings of the names, both
centered. The token z whose products with the names come closest to the logits, argmin |C z - l|² + λ |z|²,
is (CᵀC + λI)⁻¹ Cᵀ l, linear in the tower's features: so it is computed, not trained.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

# Lowest probability of the likeliest class, without which a picture has no name, and of the classes that name
# it.
_CLEARLY, _POSSIBLY = 0.3, 0.15
# Names of a picture, and pictures of a class, so that frequent ones do not dominate.
_MOST_NAMES, _MOST_PICTURES = 3, 15
# Standardized values above minus this pass the GELU nearly unchanged.
_SHIFT = 3.0


class Classes(NamedTuple):
    """The tower's classifier on its first h channels: names, weights (classes, h) and biases (classes,)."""

    names: list[str]
    weight: Tensor
    bias: Tensor


@torch.no_grad()
def named_projector(
    features: NDArray[np.float16], classes: Classes, embeddings: Tensor, tokenizer: PreTrainedTokenizerBase
) -> nn.Sequential:
    """Two layers with a GELU between, as LLaVA's, that start nearly linear.

    Args:
        features: Features of some pictures, (n, positions, d), on which outputs are scaled to the spread of
            words.
        classes: The tower's classes.
        embeddings: The language model's embeddings, (vocabulary, width).
        tokenizer: Its tokenizer.
    """
    width, d, head = embeddings.shape[1], features.shape[2], classes.weight.shape[1]
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
    seen = torch.from_numpy(features[:, :, :head].reshape(-1, head)).float()  # (n · positions, h)
    tokens = seen @ weight.T + bias  # (n · positions, width)
    scale = embeddings.std() / tokens.std()
    mean, deviation = tokens.mean(dim=0), tokens.std(dim=0)  # (width,), (width,)
    first, last = nn.Linear(d, width), nn.Linear(width, width)
    first.weight.zero_()
    first.weight[:, :head] = weight / deviation[:, None]
    first.bias.copy_((bias - mean) / deviation + _SHIFT)
    last.weight.copy_(torch.diag(scale * deviation))
    last.bias.copy_(center + scale * (mean - _SHIFT * deviation))
    return nn.Sequential(first, nn.GELU(), last)


def recognized(features: NDArray[np.float16], classes: Classes, seed: int) -> dict[int, list[str]]:
    """Names of what is seen clearly, at most 15 pictures of each class.

    Args:
        features: Features of n pictures, (n, positions, d).
        classes: The tower's classes.
        seed: Seeds which pictures of a class are taken.

    Returns:
        Lower-case names by row of the picture, the likeliest first.
    """
    head = classes.weight.shape[1]
    # The classifier reads the mean over positions.
    pooled = torch.from_numpy(features[:, :, :head].mean(axis=1, dtype=np.float32))  # (n, h)
    likely = (pooled @ classes.weight.T + classes.bias).softmax(dim=1)  # (n, classes)
    shares, found = (one.numpy() for one in likely.topk(_MOST_NAMES, dim=1))  # (n, 3), (n, 3)
    clear = np.flatnonzero(shares[:, 0] >= _CLEARLY)
    taken: Counter[int] = Counter()
    names: dict[int, list[str]] = {}
    for row in np.random.default_rng(seed).permutation(clear).tolist():
        first = int(found[row, 0])
        if taken[first] < _MOST_PICTURES:
            taken[first] += 1
            names[row] = [classes.names[one].lower() for one in found[row][shares[row] >= _POSSIBLY]]
    return names

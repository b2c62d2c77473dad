"""Positions of tokens under rotary embeddings of three dimensions (M-RoPE: Qwen2-VL and later, GLM-4V)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def rope_positions(model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """The positions that a model computes for prompts: of an image's tokens their rows and columns.

    Args:
        model: The model, also inside adapters.
        inputs: Its arguments, with `input_ids` and `attention_mask` of shape (n, length).

    Returns:
        Shape (3, n, length); None if the model numbers its tokens.
    """
    rope: Any = next((module for module in model.modules() if hasattr(type(module), "get_rope_index")), None)
    if rope is None:
        return None
    positions: Tensor = rope.get_rope_index(**inputs)[0]
    return positions


def with_positions(model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The arguments with such positions, which a model called without `mm_token_type_ids` would get wrong."""
    if "position_ids" in inputs:
        return inputs
    positions = rope_positions(model, inputs)
    return inputs if positions is None else {**inputs, "position_ids": positions}

"""Packs both prompts of a sample into one row, so that one forward pass gives both losses.

The prompts with and without the question share a prefix, the system text and the image. A row is `[prefix |
with question | without]`: the prefix once, then both continuations. The positions of the second continuation
start where the prefix ends, and an attention mask hides the first continuation from it, so that each token
attends to the same tokens as in a separate prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from presel.errors import PreselError
from presel.models.conversations import IGNORED, ConversationEncoder, Encoded, Example
from presel.models.inputs import Inputs

PREFIX, WITH_QUESTION, WITHOUT_QUESTION, PADDING = range(4)


class Pair(NamedTuple):
    """Both prompts of a sample in one row; lists of the row's length.

    Attributes:
        ids: Token ids.
        labels: Ids of response tokens, `IGNORED` elsewhere.
        positions: Position of each token in its own prompt.
        parts: Part of each token: `PREFIX`, `WITH_QUESTION` or `WITHOUT_QUESTION`.
        shares_image: Whether all images are in the prefix.
        truncated: Whether a prompt was truncated to the model's maximum length.
        images: Number of images.
    """

    ids: list[int]
    labels: list[int]
    positions: list[int]
    parts: list[int]
    shares_image: bool
    truncated: bool
    images: int

    @property
    def answered(self) -> bool:
        """Whether a token of a response was not cut off in the prompt with the question."""
        return any(
            label != IGNORED and part != WITHOUT_QUESTION
            for label, part in zip(self.labels, self.parts, strict=True)
        )


@dataclass(frozen=True)
class PairBatch:
    """Pairs padded to the same length.

    Attributes:
        ids: As in `Pair`, (n, length), like the next three.
        labels: As in `Pair`.
        positions: As in `Pair`.
        parts: As in `Pair`.
        inputs: What else the model takes: the tensors of images, and the tokens' types if it takes them.
        shares_image: True for samples whose images are in the prefix, (n,); only these can be scored in one
            pass.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    parts: Tensor
    inputs: Inputs
    shares_image: Tensor

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.ids)

    def part(self, rows: slice | Tensor) -> "PairBatch":
        """A subset of the samples, in the order of `rows`."""
        return self._with(lambda tensor: tensor[rows], self.inputs.part(rows))

    def to(self, model: PreTrainedModel) -> "PairBatch":
        """The batch on the model's device, images in the model's dtype."""
        return self._with(lambda tensor: tensor.to(model.device), self.inputs.to(model.device, model.dtype))

    def _with(self, change: Callable[[Tensor], Tensor], inputs: Inputs) -> "PairBatch":
        changed = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "inputs"}
        return PairBatch(**{name: change(tensor) for name, tensor in changed.items()}, inputs=inputs)


def pair(encoder: ConversationEncoder, example: Example) -> Pair:
    """Packs both prompts of a sample after their common prefix.

    Raises:
        PreselError: If an image of a prompt was cut off.
    """
    prompts = [encoder.prompt(example, question) for question in (True, False)]
    if any(prompt.images < len(example.images) for prompt in prompts):
        raise PreselError(
            f"{example.name}: an image of its conversation is cut off at lvlm.max_length, so that the "
            "question's relevance cannot be measured; raise it"
        )
    shared = _shared_length(prompts)
    ids, labels = prompts[0].ids[:shared], prompts[0].labels[:shared]
    positions, parts = list(range(shared)), [PREFIX] * shared
    for part, prompt in zip((WITH_QUESTION, WITHOUT_QUESTION), prompts, strict=True):
        ids = ids + prompt.ids[shared:]
        labels = labels + prompt.labels[shared:]
        positions += range(shared, len(prompt.ids))
        parts += [part] * (len(prompt.ids) - shared)
    shares_image = encoder.image_token not in ids[shared:]
    truncated = any(prompt.truncated for prompt in prompts)
    return Pair(ids, labels, positions, parts, shares_image, truncated, len(example.images))


def _shared_length(prompts: Sequence[Encoded]) -> int:
    """Length of the common prefix, which ends before the token from which the first response is predicted.

    So each response token directly follows the token from which it is predicted.
    """
    same = 0
    for first, second in zip(prompts[0].ids, prompts[1].ids, strict=False):
        if first != second:
            break
        same += 1
    for prompt in prompts:
        responses = (place for place, label in enumerate(prompt.labels) if label != IGNORED)
        same = min(same, next(responses, len(prompt.ids)) - 1)
    return max(same, 0)


def pair_batch(encoder: ConversationEncoder, examples: Sequence[Example]) -> PairBatch:
    """Encodes a batch; each image is preprocessed once."""
    pairs = [pair(encoder, example) for example in examples]
    columns = zip(*(one[:4] for one in pairs), strict=True)
    fill = (encoder.tokenizer.pad_token_id, IGNORED, 0, PADDING)
    ids, labels, positions, parts = (
        pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
        for rows, value in zip(columns, fill, strict=True)
    )
    inputs = encoder.with_images({"input_ids": ids}, examples, [one.images for one in pairs])
    shares_image = torch.tensor([one.shares_image for one in pairs])
    return PairBatch(ids, labels, positions, parts, inputs.without("input_ids"), shares_image)


def attention_mask(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask, (n, 1, length, length).

    Additive, because eager attention adds any mask to its scores; a boolean one would add 0 and 1.
    """
    query, key = parts[:, :, None], parts[:, None, :]  # (n, length, 1), (n, 1, length)
    place = torch.arange(parts.shape[1], device=parts.device)  # (length,)
    # Padding attends to itself, since a softmax over no token is NaN.
    visible = (key == PREFIX) | (key == query)  # (n, length, length)
    allowed = visible & (place[:, None] >= place)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=parts.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]

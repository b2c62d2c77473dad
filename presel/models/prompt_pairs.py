"""Both prompts of a sample in one row, so that one forward pass gives both of its losses.

The prompts with and without the question begin alike, with the system text and the image. So a row holds that
prefix once and then both continuations, `[prefix | with question | without]`. The second one starts again at
the position where the prefix ends, and an attention mask hides the first from it: each token sees what it
would see in a prompt of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from presel.models.conversations import IGNORED, ConversationEncoder, Encoded, Example

PREFIX, WITH_QUESTION, WITHOUT_QUESTION, PADDING = range(4)


class Pair(NamedTuple):
    """Both prompts of a sample in one row; all of the row's length.

    Attributes:
        ids: Token ids.
        labels: Ids of response tokens, `IGNORED` elsewhere.
        positions: Each token's position in its own prompt.
        parts: What each token belongs to: `PREFIX`, `WITH_QUESTION` or `WITHOUT_QUESTION`.
        shares_image: Whether the image lies in the prefix.
        truncated: Whether a prompt was cut to the model's maximal length.
    """

    ids: list[int]
    labels: list[int]
    positions: list[int]
    parts: list[int]
    shares_image: bool
    truncated: bool


@dataclass(frozen=True)
class PairBatch:
    """Pairs padded to one length: tensors of shape (n, length), pixels (n, 3, height, width).

    `shares_image` says of which samples the image lies in the prefix, (n,): only these fit into one pass.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    parts: Tensor
    pixels: Tensor
    shares_image: Tensor

    def __len__(self) -> int:
        """Counts the samples."""
        return len(self.ids)

    def part(self, rows: slice | Tensor) -> "PairBatch":
        """Some of the samples, in the order of `rows`."""
        return self._with(lambda tensor: tensor[rows])

    def to(self, model: PreTrainedModel) -> "PairBatch":
        """The batch on the model's device, the pixels in its precision."""
        moved = self._with(lambda tensor: tensor.to(model.device))
        return replace(moved, pixels=moved.pixels.to(model.dtype))

    def _with(self, change: Callable[[Tensor], Tensor]) -> "PairBatch":
        return PairBatch(*(change(getattr(self, field.name)) for field in fields(self)))


def pair(encoder: ConversationEncoder, example: Example) -> Pair:
    """Joins both prompts of a sample behind their common prefix."""
    prompts = [encoder.tokens(example.conversations, question) for question in (True, False)]
    shared = _shared_length(prompts)
    ids, labels = prompts[0].ids[:shared], prompts[0].labels[:shared]
    positions, parts = list(range(shared)), [PREFIX] * shared
    for part, prompt in zip((WITH_QUESTION, WITHOUT_QUESTION), prompts, strict=True):
        ids = ids + prompt.ids[shared:]
        labels = labels + prompt.labels[shared:]
        positions += range(shared, len(prompt.ids))
        parts += [part] * (len(prompt.ids) - shared)
    shares_image = encoder.image_token not in ids[shared:]
    return Pair(ids, labels, positions, parts, shares_image, any(prompt.truncated for prompt in prompts))


def _shared_length(prompts: Sequence[Encoded]) -> int:
    """Length of the common prefix, ending before the token that the first response is predicted from.

    So every response token stands right behind the token it is predicted from.
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
    """Encodes a batch, each image once."""
    pairs = [pair(encoder, example) for example in examples]
    columns = zip(*(one[:4] for one in pairs), strict=True)
    fill = (encoder.tokenizer.pad_token_id, IGNORED, 0, PADDING)
    ids, labels, positions, parts = (
        pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
        for rows, value in zip(columns, fill, strict=True)
    )
    pixels = encoder.pixels([example.image for example in examples])
    shares_image = torch.tensor([one.shares_image for one in pairs])
    return PairBatch(ids, labels, positions, parts, pixels, shares_image)


def attention_mask(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask, (n, 1, length, length).

    Additive, because eager attention adds whatever it is given, and a boolean mask would add 0 and 1.
    """
    query, key = parts[:, :, None], parts[:, None, :]
    place = torch.arange(parts.shape[1], device=parts.device)
    # Padding sees itself, since a softmax over nothing is not a number.
    seen = (key == PREFIX) | (key == query)
    allowed = seen & (place[:, None] >= place)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=parts.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]

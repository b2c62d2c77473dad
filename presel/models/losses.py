"""Mean response losses with and without the question, both from one forward pass a batch (eq. 1 and 2).

The two prompts of a sample begin alike, with the system text and the image. So a row holds that prefix once
and then both continuations, `[prefix | with question | without]`. The second one starts again at the position
where the prefix ends, and an attention mask hides the first from it: each token sees what it would see in a
prompt of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from presel.console import console
from presel.errors import PreselError
from presel.models.conversations import IGNORED, ConversationEncoder, Encoded, Example

PREFIX, WITH_QUESTION, WITHOUT_QUESTION, PADDING = range(4)

# Samples of the first batch on which one pass is held against two, and how far the losses may lie apart.
_CHECKED = 4
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.1}


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
    """Pairs padded to one length: tensors of shape (n, length), pixels (n, 3, height, width)."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    parts: Tensor
    pixels: Tensor
    shares_image: bool

    def __len__(self) -> int:
        """Counts the samples."""
        return len(self.ids)

    def part(self, rows: slice) -> "PairBatch":
        """Some of the samples."""
        return self._with(lambda tensor: tensor[rows])

    def to(self, model: PreTrainedModel) -> "PairBatch":
        """The batch on the model's device, the pixels in its precision."""
        moved = self._with(lambda tensor: tensor.to(model.device))
        return replace(moved, pixels=moved.pixels.to(model.dtype))

    def _with(self, change: Callable[[Tensor], Tensor]) -> "PairBatch":
        ids, labels, positions, parts, pixels = map(
            change, (self.ids, self.labels, self.positions, self.parts, self.pixels)
        )
        return PairBatch(ids, labels, positions, parts, pixels, self.shares_image)


class Losses(NamedTuple):
    """Losses in nats a response token, and numbers of response tokens with the question, each (n,)."""

    with_question: Tensor
    without_question: Tensor
    n_tokens: Tensor


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
    return PairBatch(ids, labels, positions, parts, pixels, all(one.shares_image for one in pairs))


class Scorer:
    """Scores pairs by one pass, or by two where a model does not take the mask; says so once.

    Attributes:
        single_pass: Whether one pass will do; None before the first batch, on which both are compared.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Takes the reference model, in eval mode."""
        self._model = model
        self.single_pass: bool | None = None

    @torch.inference_mode()
    def losses(self, batch: PairBatch) -> Losses:
        """Scores a batch, in halves where it does not fit into memory.

        Raises:
            PreselError: If a single sample does not fit.
        """
        if self.single_pass is None:
            self.single_pass = self._takes_pairs(batch.part(slice(_CHECKED)))
            if not self.single_pass:
                console.print("  this model does not take the mask behind scoring in one pass; it takes two")
        try:
            return self._scored(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise PreselError(
                    f"a sample of {batch.ids.shape[1]} tokens does not fit into the device's memory; lower "
                    "lvlm.max_length or take a larger device"
                ) from error
        # Outside the handler, whose exception keeps the failed attempt's tensors alive.
        middle = len(batch) // 2
        halves = [self.losses(batch.part(half)) for half in (slice(middle), slice(middle, None))]
        return Losses(*(torch.cat(parts) for parts in zip(*halves, strict=True)))

    def _takes_pairs(self, batch: PairBatch) -> bool:
        batch = batch.to(self._model)
        if not batch.shares_image:
            return True
        one, two = one_pass(self._model, batch), two_passes(self._model, batch)
        apart = max(float((a - b).abs().nan_to_num().max()) for a, b in zip(one, two, strict=True))
        return apart <= _TOLERANCE[self._model.dtype]

    def _scored(self, batch: PairBatch) -> Losses:
        score = one_pass if self.single_pass and batch.shares_image else two_passes
        return Losses(*(values.cpu() for values in score(self._model, batch.to(self._model))))


def token_losses(model: torch.nn.Module, labels: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every response token; logits exist only where some row has a response.

    Args:
        model: A language model of transformers, with an adapter or without.
        labels: Ids of response tokens, `IGNORED` elsewhere, (n, length).
        **inputs: What else the model reads.

    Returns:
        Losses, (n, p), 0 where a row has no response token; and the places of the p columns, (p,).
    """
    places = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = model(**inputs, use_cache=False, logits_to_keep=places).logits
    targets = labels[:, places + 1]
    losses = cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets), places + 1


def one_pass(model: PreTrainedModel, batch: PairBatch) -> Losses:
    """Both losses of each sample from one pass; the batch must share its images and lie on the device."""
    losses, places = token_losses(
        model,
        batch.labels,
        input_ids=batch.ids,
        pixel_values=batch.pixels,
        attention_mask=_mask(batch.parts, model.dtype),
        position_ids=batch.positions,
    )
    supervised = batch.labels[:, places] != IGNORED
    (with_question, n_tokens), (without_question, _) = (
        _means(losses, supervised & (batch.parts[:, places] == part))
        for part in (WITH_QUESTION, WITHOUT_QUESTION)
    )
    return Losses(with_question, without_question, n_tokens)


def _mask(parts: Tensor, dtype: torch.dtype) -> Tensor:
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


def two_passes(model: PreTrainedModel, batch: PairBatch) -> Losses:
    """The same losses by two plain calls of the model."""
    (with_question, n_tokens), (without_question, _) = (
        _prompt_losses(model, batch, part) for part in (WITH_QUESTION, WITHOUT_QUESTION)
    )
    return Losses(with_question, without_question, n_tokens)


def _prompt_losses(model: PreTrainedModel, batch: PairBatch, part: int) -> tuple[Tensor, Tensor]:
    kept = (batch.parts == PREFIX) | (batch.parts == part)
    # The prompt's tokens to the front, in their order.
    order = (~kept).int().argsort(dim=1, stable=True)[:, : int(kept.sum(dim=1).max())]
    kept = kept.gather(1, order)
    # Behind a shorter prompt stands its first token, unseen: the other prompt's may be those of the image.
    ids = torch.where(kept, batch.ids.gather(1, order), batch.ids[:, :1])
    labels = batch.labels.gather(1, order).masked_fill(~kept, IGNORED)
    losses, places = token_losses(
        model, labels, input_ids=ids, pixel_values=batch.pixels, attention_mask=kept.long()
    )
    return _means(losses, labels[:, places] != IGNORED)


def _means(losses: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    counts = counted.sum(dim=1)
    return (losses * counted).sum(dim=1) / counts, counts

"""Mean response losses with and without the question, both from one forward pass a batch (eq. 1 and 2)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from presel.console import console
from presel.errors import PreselError
from presel.models.conversations import IGNORED
from presel.models.pairs import PADDING, PREFIX, WITH_QUESTION, WITHOUT_QUESTION, PairBatch, attention_mask

# Samples of the first batch on which one pass is held against two, and how far the losses may lie apart.
_CHECKED = 4
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.1}


class Losses(NamedTuple):
    """Losses in nats a response token, and numbers of response tokens with the question, each (n,)."""

    with_question: Tensor
    without_question: Tensor
    n_tokens: Tensor


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
    """Both losses of each sample from one pass; the batch must share its images and lie on the device.

    The output layer, a large part of a small model, sees the response tokens alone. A model that does more
    than that layer to its logits is found out when both ways are compared.
    """
    states = model.base_model(
        input_ids=batch.ids,
        pixel_values=batch.pixels,
        attention_mask=attention_mask(batch.parts, model.dtype),
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    rows, places = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    logits = model.get_output_embeddings()(states[rows, places])
    losses = cross_entropy(logits.float(), batch.labels[rows, places + 1], reduction="none")
    index = (rows, batch.parts[rows, places + 1])
    sums = losses.new_zeros(len(batch), PADDING).index_put_(index, losses, accumulate=True)
    counts = torch.zeros_like(sums).index_put_(index, torch.ones_like(losses), accumulate=True)
    means = sums / counts
    return Losses(means[:, WITH_QUESTION], means[:, WITHOUT_QUESTION], counts[:, WITH_QUESTION].long())


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
    counts = (labels[:, places] != IGNORED).sum(dim=1)
    return losses.sum(dim=1) / counts, counts

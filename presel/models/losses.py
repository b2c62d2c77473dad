"""Scores of samples from one forward pass a batch: both mean response losses (eq. 1 and 2), and EL2N."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from presel.errors import PreselError
from presel.models.conversations import IGNORED
from presel.models.prompt_pairs import PREFIX, WITH_QUESTION, WITHOUT_QUESTION, PairBatch, attention_mask

_log = logging.getLogger(__name__)

# Response tokens whose logits exist at once.
_TOKENS_AT_ONCE = 128
# Samples on which one pass is held against two, and how far their losses may lie apart.
_CHECKED = 4
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.1}


class Losses(NamedTuple):
    """What a pass tells of n samples, each (n,).

    Attributes:
        with_question: Mean loss in nats a response token given image and question.
        without_question: The same given the image alone.
        el2n: Mean length of a response token's error vector, softmax minus one-hot, given the question (EL2N;
            Paul et al., 2021).
        n_tokens: Response tokens with the question.
    """

    with_question: Tensor
    without_question: Tensor
    el2n: Tensor
    n_tokens: Tensor


class Scorer:
    """Scores pairs by one pass where it gives what two give, else by two; says so once.

    Attributes:
        single_pass: Whether one pass will do; None until both were compared on samples that fit into one.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Takes the reference model, in eval mode."""
        self._model = model
        self.single_pass: bool | None = None

    def passes(self, batch: PairBatch) -> Tensor:
        """How many passes each sample takes, (n,): two until one is known to do, or where it does not fit."""
        return torch.where(batch.shares_image & bool(self.single_pass), 1, 2)

    @torch.inference_mode()
    def losses(self, batch: PairBatch) -> Losses:
        """Scores a batch, in halves where it does not fit into memory.

        Raises:
            PreselError: If a single sample does not fit.
        """
        try:
            if self.single_pass is None:
                self._compare(batch.part(batch.shares_image.nonzero()[:_CHECKED, 0]))
            return self._scored(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise PreselError(
                    f"a sample of {batch.ids.shape[1]} tokens does not fit into the device's memory; lower "
                    "lvlm.max_length or take a larger device"
                ) from error
        # Outside the handler, whose exception keeps the failed attempt's tensors alive.
        middle = len(batch) // 2
        return _joined([self.losses(batch.part(half)) for half in (slice(middle), slice(middle, None))])

    def _compare(self, batch: PairBatch) -> None:
        """Decides between one pass and two, unless these samples have no loss to compare."""
        if not len(batch):
            return
        batch = batch.to(self._model)
        one, two = (torch.stack(score(self._model, batch)[:3]) for score in (one_pass, two_passes))
        # A sample without a response within the model's maximal length has none in either.
        compared = one.isfinite() | two.isfinite()
        if not compared.any():
            return
        tolerance = _TOLERANCE[self._model.dtype]
        self.single_pass = torch.allclose(one[compared], two[compared], rtol=0, atol=tolerance)
        if not self.single_pass:
            _log.info("  this model does not take the mask behind scoring in one pass; it takes two")

    def _scored(self, batch: PairBatch) -> Losses:
        passes = self.passes(batch)
        scored, rows = [], []
        for score, own in ((one_pass, passes == 1), (two_passes, passes == 2)):
            if own.any():
                losses = score(self._model, batch.part(own).to(self._model))
                scored.append(Losses(*(values.cpu() for values in losses)))
                rows.append(own.nonzero()[:, 0])
        in_order = torch.cat(rows).argsort()
        return Losses(*(values[in_order] for values in _joined(scored)))


def _joined(parts: Sequence[Losses]) -> Losses:
    return Losses(*(torch.cat(values) for values in zip(*parts, strict=True)))


def token_losses(model: torch.nn.Module, labels: Tensor, **inputs: Tensor) -> Tensor:
    """Cross-entropy of every response token.

    Args:
        model: A language model of transformers, with an adapter or without.
        labels: Ids of response tokens, `IGNORED` elsewhere, (n, length).
        **inputs: What else the model reads.

    Returns:
        Losses, (n, p), with a column for each place where some row has a response token; 0 where a row has
        none.
    """
    logits, targets = _response_logits(model, labels, **inputs)
    losses = cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets)


def _response_logits(model: torch.nn.Module, labels: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, (n, p, vocabulary), only where some row has a response, and the labels there, (n, p)."""
    places = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(1)
    return model(**inputs, use_cache=False, logits_to_keep=places).logits, labels[:, places + 1]


def one_pass(model: PreTrainedModel, batch: PairBatch) -> Losses:
    """Scores each sample by one pass; the batch must share its images and lie on the device.

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
    parts = batch.parts[rows, places + 1]
    output_layer = model.get_output_embeddings()
    losses, errors = _token_scores(
        lambda some: output_layer(states[rows[some], places[some]]), batch.labels[rows, places + 1]
    )

    def mean(values: Tensor, part: int) -> Tensor:
        own = rows[parts == part]
        sums = values.new_zeros(len(batch)).index_add_(0, own, values[parts == part])
        return sums / own.bincount(minlength=len(batch))

    return Losses(
        mean(losses, WITH_QUESTION),
        mean(losses, WITHOUT_QUESTION),
        mean(errors, WITH_QUESTION),
        rows[parts == WITH_QUESTION].bincount(minlength=len(batch)),
    )


def two_passes(model: PreTrainedModel, batch: PairBatch) -> Losses:
    """The same scores by two plain calls of the model."""
    (with_question, el2n, n_tokens), (without_question, _, _) = (
        _prompt_scores(model, batch, part) for part in (WITH_QUESTION, WITHOUT_QUESTION)
    )
    return Losses(with_question, without_question, el2n, n_tokens)


def _prompt_scores(model: PreTrainedModel, batch: PairBatch, part: int) -> tuple[Tensor, Tensor, Tensor]:
    kept = (batch.parts == PREFIX) | (batch.parts == part)
    # The prompt's tokens to the front, in their order.
    order = (~kept).int().argsort(dim=1, stable=True)[:, : int(kept.sum(dim=1).max())]
    kept = kept.gather(1, order)
    # Behind a shorter prompt stands its first token, unseen: the other prompt's may be those of the image.
    ids = torch.where(kept, batch.ids.gather(1, order), batch.ids[:, :1])
    labels = batch.labels.gather(1, order).masked_fill(~kept, IGNORED)
    logits, targets = _response_logits(
        model, labels, input_ids=ids, pixel_values=batch.pixels, attention_mask=kept.long()
    )
    rows, places = (targets != IGNORED).nonzero(as_tuple=True)
    scores = _token_scores(lambda some: logits[rows[some], places[some]], targets[rows, places])
    counts = rows.bincount(minlength=len(batch))
    losses, errors = (values.new_zeros(len(batch)).index_add_(0, rows, values) / counts for values in scores)
    return losses, errors, counts


def _token_scores(logits_of: Callable[[Tensor], Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and length of softmax minus one-hot of every token, a few at a time.

    All logits at once, and what is computed from them, would take more memory than the model's own states.

    Args:
        logits_of: Gives the logits, (m, vocabulary), of tokens named by their places in `targets`, (m,).
        targets: The tokens, (n,).

    Returns:
        Both, (n,).
    """
    scores = []
    for some in torch.split(torch.arange(len(targets), device=targets.device), _TOKENS_AT_ONCE):
        target = targets[some, None]
        log_probabilities = logits_of(some).float().log_softmax(dim=1)
        losses = -log_probabilities.gather(1, target)
        errors = log_probabilities.exp_().scatter_add_(1, target, -torch.ones_like(losses))
        scores.append((losses.squeeze(1), torch.linalg.vector_norm(errors, dim=1)))
    losses, errors = (torch.cat(values) for values in zip(*scores, strict=True))
    return losses, errors

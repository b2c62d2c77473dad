"""Scores of samples: mean response losses with and without the question (eq. 1 and 2), and EL2N.

Also those with and without the image, for VisNec.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from presel.models.batching import halve_batch_on_oom, halve_on_oom
from presel.models.conversations import IGNORED
from presel.models.inputs import Inputs
from presel.models.positions import rope_positions, with_positions
from presel.models.prompt_pairs import PREFIX, WITH_QUESTION, WITHOUT_QUESTION, PairBatch, attention_mask

_log = logging.getLogger(__name__)

# Response tokens whose logits are in memory at once.
_TOKENS_AT_ONCE = 128
# Samples on which one pass is compared with two, and the largest difference of losses allowed.
_COMPARED = 4
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.1}


class Losses(NamedTuple):
    """Scores of n samples, each (n,).

    Attributes:
        with_question: Mean loss of the response tokens in nats, given image and question (eq. 1).
        without_question: The same, given only the image (eq. 2).
        el2n: Mean L2 norm of a response token's error vector, softmax minus one-hot, given the question
            (EL2N; Paul et al., 2021).
        n_tokens: Response tokens in the prompt with the question.
    """

    with_question: Tensor
    without_question: Tensor
    el2n: Tensor
    n_tokens: Tensor


class ImageLosses(NamedTuple):
    """Mean losses of the response tokens of n samples in nats, each (n,).

    Attributes:
        with_image: Given image and questions.
        without_image: Given the questions alone.
        n_tokens: Response tokens.
    """

    with_image: Tensor
    without_image: Tensor
    n_tokens: Tensor


Scores = TypeVar("Scores", Losses, ImageLosses)


class Scorer:
    """Scores pairs by one forward pass if that gives the same losses as two, else by two."""

    def __init__(self, model: PreTrainedModel, autocast: bool = False) -> None:
        """Takes the reference model, in eval mode, and whether it computes in bf16 with other weights."""
        self._model = model
        self._tolerance = _TOLERANCE[torch.bfloat16 if autocast else model.dtype]
        # Whether one pass is enough; None until both were compared.
        self.single_pass: bool | None = None

    def decide(self, batches: Iterable[PairBatch]) -> None:
        """Chooses one pass or two on the first of these batches that has a sample to compare.

        Otherwise the first scored batch would decide, which differs between processes and after a resume.
        """
        for batch in batches:
            self.losses(batch)
            if self.single_pass is not None:
                break

    def passes(self, batch: PairBatch) -> Tensor:
        """Passes of each sample, (n,): one if known to suffice and the image is in its prefix, else two."""
        return torch.where(batch.shares_image & bool(self.single_pass), 1, 2)

    @torch.inference_mode()
    def losses(self, batch: PairBatch) -> Losses:
        """Scores a batch, in halves if it does not fit into memory.

        Raises:
            PreselError: If a single sample does not fit.
        """

        def score(rows: slice) -> Losses:
            part = batch.part(rows)
            if self.single_pass is None:
                self._compare(part.part(part.shares_image.nonzero()[:_COMPARED, 0]))
            return self._scored(part)

        return _joined(halve_on_oom(score, range(len(batch)), batch.ids.shape[1]))

    def _compare(self, batch: PairBatch) -> None:
        """Decides between one pass and two, unless none of these samples has a loss."""
        if not len(batch):
            return
        # The function by which transformers' `generate` has a model make its own masks, because they are not
        # causal: tokens of Gemma's images, and PaliGemma's whole prompt, see those after them. A causal mask
        # changes their losses, perhaps by less than the tolerance, so that no comparison decides.
        if hasattr(self._model, "create_masks_for_generate"):
            self.single_pass, why = False, "it makes attention masks of its own"
        else:
            self.single_pass, why = self._agree(batch.to(self._model))
        if self.single_pass is False:
            _log.info(f"  single-pass scoring does not suit this model, so that it takes two passes: {why}")

    def _agree(self, batch: PairBatch) -> tuple[bool | None, str]:
        """Whether one pass gives the same losses as two, None if no sample has a loss; and why not."""
        two = torch.stack(two_passes(self._model, batch)[:3])
        try:
            one = torch.stack(one_pass(self._model, batch)[:3])
        except torch.OutOfMemoryError:
            raise
        # A model that does not know such a mask, or these positions, may raise any exception.
        except Exception as error:
            return False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        # A sample without a response within the model's maximum length has no loss in either.
        compared = one.isfinite() | two.isfinite()
        if not compared.any():
            return None, ""
        difference = float((one[compared] - two[compared]).abs().max())
        return difference <= self._tolerance, f"a loss differs by {difference:.3g}"

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


def _joined(parts: Sequence[Scores]) -> Scores:
    return type(parts[0])(*(torch.cat(values) for values in zip(*parts, strict=True)))


def token_losses(model: torch.nn.Module, labels: Tensor, **inputs: Tensor) -> Tensor:
    """Cross-entropy of every response token; `labels`, (n, length), are `IGNORED` elsewhere.

    Returns:
        Losses, (n, p), with a column for each position where any row has a response token; 0 where a row has
        none.
    """
    logits, targets = _response_logits(model, labels, **inputs)
    logits, labels = logits.flatten(0, 1).float(), targets.flatten()
    return cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none").view_as(targets)


def _response_logits(model: torch.nn.Module, labels: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, (n, p, vocabulary), only at positions where any row has a response, and labels, (n, p)."""
    places = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(1)  # (p,)
    given = with_positions(model, inputs)
    return model(**given, use_cache=False, logits_to_keep=places).logits, labels[:, places + 1]


def one_pass(model: PreTrainedModel, batch: PairBatch) -> Losses:
    """Scores each sample by one pass; all images must be in the prefixes, and the batch on the device.

    Only the response tokens pass through the output layer, a large part of a small model. If a model
    processes its logits further, the comparison of one pass with two shows it.
    """
    states = model.base_model(
        **batch.inputs,
        input_ids=batch.ids,
        attention_mask=attention_mask(batch.parts, model.dtype),
        position_ids=_positions(model, batch),
        use_cache=False,
    ).last_hidden_state  # (n, length, hidden size)
    rows, places = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)  # (t,), (t,)
    parts = batch.parts[rows, places + 1]  # (t,)
    output_layer = model.get_output_embeddings()
    losses, errors = _token_scores(
        lambda chunk: output_layer(states[rows[chunk], places[chunk]]), batch.labels[rows, places + 1]
    )  # (t,), (t,)

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


def _positions(model: PreTrainedModel, batch: PairBatch) -> Tensor:
    """Positions of all tokens in their own prompts, (n, length), or (3, n, length) under M-RoPE.

    A prompt's are those that the model computes for it alone; in the prefix both prompts have the same.
    """
    positions = batch.positions
    for part in (WITH_QUESTION, WITHOUT_QUESTION):
        order, given = _prompt(batch, part)
        own = rope_positions(model, given)  # (3, n, m)
        if own is None:
            return positions
        kept = given["attention_mask"].bool()
        if positions.ndim == 2:
            positions = positions.expand(len(own), -1, -1).clone()  # (3, n, length)
        before = positions.gather(2, order.expand_as(own))
        positions = positions.scatter(2, order.expand_as(own), torch.where(kept, own, before))
    return positions


def two_passes(model: PreTrainedModel, batch: PairBatch) -> Losses:
    """The same scores by two plain forward passes."""
    (with_question, el2n, n_tokens), (without_question, _, _) = (
        _prompt_scores(model, batch, part) for part in (WITH_QUESTION, WITHOUT_QUESTION)
    )
    return Losses(with_question, without_question, el2n, n_tokens)


@torch.inference_mode()
def image_losses(model: PreTrainedModel, batch: Inputs, image_token: int) -> ImageLosses:
    """Scores a batch of `ConversationEncoder`, in halves if it does not fit into memory.

    Raises:
        PreselError: If a single sample does not fit.
    """

    def score(part: Inputs) -> ImageLosses:
        return ImageLosses(*(values.cpu() for values in _with_and_without_image(model, part, image_token)))

    return _joined(halve_batch_on_oom(score, batch))


def _with_and_without_image(model: PreTrainedModel, batch: Inputs, image_token: int) -> ImageLosses:
    """Scores a batch by two plain forward passes.

    Without the image, its tokens are left out, and the text keeps its positions: as if they were masked. In
    the code of VisNec's authors one masked token stands for all, so that later positions are smaller.
    """
    batch = batch.to(model.device, model.dtype)
    labels, inputs = batch["labels"], batch.without("labels")  # (n, length)
    with_image, _, counts = _response_scores(model, labels, **inputs)
    ids = inputs["input_ids"]  # (n, length)
    positions = rope_positions(model, inputs)  # (3, n, length)
    if positions is None:
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)  # (n, length)
    text = inputs["attention_mask"].bool() & (ids != image_token)
    order = _front(text)  # (n, m)
    text, ids = text.gather(1, order), ids.gather(1, order)
    without_image, _, _ = _response_scores(
        model,
        labels.gather(1, order).masked_fill(~text, IGNORED),
        # A masked image token would be one too many for the model.
        input_ids=torch.where(text, ids, ids[:, :1]),
        attention_mask=text.long(),
        position_ids=positions.gather(-1, order.expand(*positions.shape[:-1], -1)),
    )
    return ImageLosses(with_image, without_image, counts)


def _prompt_scores(model: PreTrainedModel, batch: PairBatch, part: int) -> tuple[Tensor, Tensor, Tensor]:
    order, given = _prompt(batch, part)
    labels = batch.labels.gather(1, order).masked_fill(given["attention_mask"] == 0, IGNORED)
    return _response_scores(model, labels, **given)


def _prompt(batch: PairBatch, part: int) -> tuple[Tensor, Inputs]:
    """One of both prompts of each sample, as the model takes it.

    Returns:
        The place in its row of each of the prompt's tokens, (n, m), and the prompts of m tokens.
    """
    kept = (batch.parts == PREFIX) | (batch.parts == part)  # (n, length)
    order = _front(kept)  # (n, m)
    kept = kept.gather(1, order)
    ids = batch.ids.gather(1, order)
    types = batch.inputs.of_text(lambda tensor: tensor.gather(1, order) * kept)
    given = {
        # A shorter prompt is padded with its first token: the other prompt's tokens may be image tokens.
        "input_ids": torch.where(kept, ids, ids[:, :1]),
        "attention_mask": kept.long(),
    }
    return order, types | given


def _front(kept: Tensor) -> Tensor:
    """The places of the kept tokens of each row, in their order, and then of others, as there is room.

    Args:
        kept: Whether a token is kept, (n, length).

    Returns:
        Places, (n, m), where m is the largest number of tokens that a row keeps.
    """
    return (~kept).int().argsort(dim=1, stable=True)[:, : int(kept.sum(dim=1).max())]


def _response_scores(
    model: PreTrainedModel, labels: Tensor, **inputs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss and mean error of each sample's response tokens, and their number, (n,) each."""
    logits, targets = _response_logits(model, labels, **inputs)
    rows, places = (targets != IGNORED).nonzero(as_tuple=True)  # (t,), (t,)
    scores = _token_scores(lambda chunk: logits[rows[chunk], places[chunk]], targets[rows, places])
    counts = rows.bincount(minlength=len(labels))  # (n,)
    losses, errors = (values.new_zeros(len(labels)).index_add_(0, rows, values) / counts for values in scores)
    return losses, errors, counts


def _token_scores(logits_of: Callable[[Tensor], Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and L2 norm of softmax minus one-hot, of every token in `targets`, (t,) each.

    In chunks, since the logits of all tokens would take more memory than the model's hidden states:
    `logits_of` returns the logits, (m, vocabulary), of the tokens at indices (m,).
    """
    scores = []
    for chunk in torch.split(torch.arange(len(targets), device=targets.device), _TOKENS_AT_ONCE):
        target = targets[chunk, None]  # (m, 1)
        log_probabilities = logits_of(chunk).float().log_softmax(dim=1)  # (m, vocabulary)
        losses = -log_probabilities.gather(1, target)  # (m, 1)
        errors = log_probabilities.exp_().scatter_add_(1, target, -torch.ones_like(losses))
        scores.append((losses.squeeze(1), torch.linalg.vector_norm(errors, dim=1)))
    losses, errors = (torch.cat(values) for values in zip(*scores, strict=True))
    return losses, errors

"""Mean response losses per sample: the two terms of the instruction relevance score."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from presel.models.conversations import IGNORED, ConversationEncoder, Example


@torch.inference_mode()
def response_losses(
    model: PreTrainedModel, encoder: ConversationEncoder, examples: Sequence[Example], question: bool
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the response tokens of each example (eq. 1 and 2).

    Args:
        model: The reference model, in eval mode.
        encoder: Its encoder.
        examples: One batch.
        question: Whether the questions stand before the responses (eq. 1) or not (eq. 2).

    Returns:
        Losses in nats a token, and the numbers of response tokens, each (n,).
    """
    batch = {name: tensor.to(model.device) for name, tensor in encoder.batch(examples, question).items()}
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    targets = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1].float()
    # cross_entropy gives 0 where the target is ignored, so the sum runs over response tokens alone.
    losses = cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    counts = (targets != IGNORED).sum(dim=1)
    return losses.sum(dim=1).cpu() / counts.cpu(), counts.cpu()

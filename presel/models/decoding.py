"""Greedy decoding of answers, and how unsure a model is of their first token."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from presel.models.batching import batch_in_memory
from presel.models.conversations import ConversationEncoder, Example


def prompt_batch(encoder: ConversationEncoder, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Encodes conversations that end with a question, padded on the left for generation.

    Raises:
        PreselError: If one exceeds the model's maximum length, since truncation would cut off the question.
    """
    batch = encoder.batch(examples, padding="left", cut=False)
    del batch["labels"]
    return batch


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel, encoder: ConversationEncoder, batch: Mapping[str, Tensor], max_new_tokens: int
) -> list[str]:
    """Greedy answers to the last question of each conversation in a `prompt_batch`.

    They have at most `max_new_tokens` tokens, without special tokens and surrounding white space.
    """
    inputs = _on_device(model, batch)
    tokenizer = encoder.tokenizer
    output = model.generate(
        **inputs,
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


@torch.inference_mode()
def first_token_entropies(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Entropy of the distribution of the first answer token, in nats, (n,), for a `prompt_batch`.

    Raises:
        PreselError: If a single sample does not fit into memory.
    """

    def entropies(part: dict[str, Tensor]) -> Tensor:
        inputs = _on_device(model, part)
        # As in generation: padding, which is on the left, has no position.
        positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)  # (n, length)
        logits = model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=1).logits[:, -1]
        found: Tensor = torch.special.entr(logits.float().softmax(dim=1)).sum(dim=1)
        return found.cpu()

    return torch.cat(batch_in_memory(entropies, batch))


def _on_device(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return inputs

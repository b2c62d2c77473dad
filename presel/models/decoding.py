"""Greedy decoding of answers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

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
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
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

"""Answers by greedy generation."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from presel.models.conversations import ConversationEncoder, Example


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel, encoder: ConversationEncoder, examples: Sequence[Example], max_new_tokens: int
) -> list[str]:
    """Greedy answers to the last question of each example.

    Args:
        model: The model, in eval mode.
        encoder: Its encoder.
        examples: One batch of conversations that end with a question.
        max_new_tokens: Length at which an answer is cut.

    Returns:
        One text an example, without special tokens and surrounding space.
    """
    batch = encoder.batch(examples, padding="left")
    del batch["labels"]
    prompt_length = batch["input_ids"].shape[1]
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    tokenizer = encoder.tokenizer
    output = model.generate(
        **batch,
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    answers = tokenizer.batch_decode(output[:, prompt_length:], skip_special_tokens=True)
    return [answer.strip() for answer in answers]

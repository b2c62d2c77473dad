"""Greedy decoding of answers, and how unsure a model is of their first token."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from presel.errors import PreselError
from presel.models.batching import halve_batch_on_oom
from presel.models.conversations import ConversationEncoder, Example
from presel.models.inputs import Inputs
from presel.models.positions import rope_positions


def prompt_batch(encoder: ConversationEncoder, examples: Sequence[Example]) -> Inputs:
    """Encodes conversations that end with a question, padded on the left for generation.

    Raises:
        PreselError: If one exceeds the model's maximum length, since truncation would cut off the question.
    """
    return encoder.batch(examples, padding="left", cut=False).without("labels")


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel, encoder: ConversationEncoder, batch: Inputs, max_new_tokens: int
) -> list[str]:
    """Greedy answers to the last question of each conversation in a `prompt_batch`.

    They have at most `max_new_tokens` tokens, without special tokens and surrounding white space.

    Raises:
        PreselError: If the batch does not fit into memory; halves of it might be answered otherwise.
    """
    inputs = batch.to(model.device, model.dtype)
    tokenizer = encoder.tokenizer
    # In place of the model's own, such as Qwen2.5-VL's with a penalty on repeated tokens: what is not set in
    # an argument of `generate` is taken from there.
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted({encoder.end_token, tokenizer.eos_token_id}),
        pad_token_id=tokenizer.pad_token_id,
    )
    try:
        output = model.generate(**inputs)
    except torch.OutOfMemoryError as error:
        raise PreselError(
            f"{len(inputs['input_ids'])} questions at once do not fit into the device's memory; lower "
            "evaluation.batch_size, and the same command goes on"
        ) from error
    answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


@torch.inference_mode()
def first_token_entropies(model: PreTrainedModel, batch: Inputs) -> Tensor:
    """Entropy of the distribution of the first answer token, in nats, (n,), for a `prompt_batch`.

    Raises:
        PreselError: If a single sample does not fit into memory.
    """

    def entropies(part: Inputs) -> Tensor:
        inputs = part.to(model.device, model.dtype)
        positions = rope_positions(model, inputs)
        if positions is None:
            # As in generation: padding, which is on the left, has no position.
            positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)  # (n, length)
        logits = model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=1).logits[:, -1]
        found: Tensor = torch.special.entr(logits.float().softmax(dim=1)).sum(dim=1)
        return found.cpu()

    return torch.cat(halve_batch_on_oom(entropies, batch))

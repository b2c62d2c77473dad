"""Vision-language models that complete batches of chats in their own chat template."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from presel.errors import PreselError
from presel.models.pretrained import load_weights
from presel.models.processors import load_processor

# Messages in the form that chat templates expect, with images among their parts.
Chat = list[dict[str, Any]]


def load_chat_processor(name: str, revision: str | None) -> ProcessorMixin:
    """A model's processor with a chat template.

    Raises:
        PreselError: If there is none, or it has no chat template.
    """
    processor = load_processor(name, revision, "instructions.model")
    if not processor.chat_template:
        raise PreselError(
            f"{name}: its processor has no chat template; name a model that is tuned for chat, or put a "
            "chat_template.jinja into its folder"
        )
    return processor


class ChatModel:
    """A chat model, in eval mode, and its processor."""

    def __init__(self, name: str, revision: str | None, dtype: str, device: torch.device) -> None:
        """Loads both by folder or hub name; `dtype` is the weights' precision, `auto` for the stored one."""
        self.processor = load_chat_processor(name, revision)
        self.model: PreTrainedModel = load_weights(
            AutoModelForImageTextToText, name, revision=revision, dtype=dtype
        )
        self.model.to(device).eval()

    @torch.inference_mode()
    def complete(
        self, chats: Sequence[Chat], max_new_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Completes chats that end with a message of the user.

        Args:
            chats: The chats.
            max_new_tokens: Maximum length of an answer in tokens.
            temperature: Sampling temperature; 0 for greedy decoding.
            seeds: One per chat, so that an answer does not depend on the rest of the batch.

        Returns:
            One answer per chat, in the format of an OpenAI-compatible server.
        """
        inputs = self.processor.apply_chat_template(
            list(chats),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(self.model.device, dtype=self.model.dtype)
        sampling = [_Sampling(temperature, seeds, self.model.device)] if temperature else []
        output = self.model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            logits_processor=sampling,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )
        answers = output[:, inputs["input_ids"].shape[1] :].tolist()
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        return [self._completion(answer, length) for answer, length in zip(answers, lengths, strict=True)]

    def _completion(self, tokens: list[int], prompt_tokens: int) -> dict[str, Any]:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        length = next((place + 1 for place, token in enumerate(tokens) if token in ends), None)
        text = self.processor.decode(tokens[:length], skip_special_tokens=True)
        choice = {
            "message": {"role": "assistant", "content": text.strip()},
            "finish_reason": "length" if length is None else "stop",
        }
        written = len(tokens) if length is None else length
        return {
            "choices": [choice],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": written,
                "total_tokens": prompt_tokens + written,
            },
        }


class _Sampling:
    """Samples at a temperature with one random generator per chat, by the Gumbel-max trick.

    The argmax of logits plus Gumbel noise is a sample from their softmax. Sampling in `generate` would use
    one generator for the batch, so that an answer would depend on the rest of the batch.
    """

    def __init__(self, temperature: float, seeds: Sequence[int], device: torch.device) -> None:
        self._temperature = temperature
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # The negative logarithm of an exponential variable is Gumbel-distributed.
        draws = [torch.empty_like(scores[0]).exponential_(generator=one) for one in self._generators]
        return scores / self._temperature - torch.stack(draws).log()

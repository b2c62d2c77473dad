"""Phase 2 of the small LLaVA: its language model answers questions about scenes that are given in words."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from experiments.pretraining.common import process_rank, scene_batches, train
from experiments.pretraining.texts import drill_conversation, encode, text_conversation

_QUESTIONS = 4
_DRILLS = 0.5
_GROUPED = 8


@dataclass(frozen=True)
class LanguageShape:
    """What the language model is.

    Attributes:
        family: A model type of transformers with the parameters of Llama, such as `llama` or `qwen2`.
        width: Size of the hidden states, a multiple of 32; the shipped model's is 160.
        layers: Decoder layers; the shipped model has 4.
    """

    family: str
    width: int
    layers: int

    def config(self, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
        """The model's configuration in the Hugging Face format."""
        heads = self.width // 32
        return AutoConfig.for_model(
            self.family,
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            # The default suits models 25 times as wide: with it, this one learns to look nothing up.
            initializer_range=self.width**-0.5,
            intermediate_size=8 * round(0.35 * self.width),
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )


def text_batches(tokenizer: PreTrainedTokenizerFast, seed: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of text-only conversations of similar length, as token ids and labels."""
    rng = np.random.default_rng([seed + 1000, process_rank()])
    # The same in all processes: they wait for each other, so their batches had better be of like length.
    order = np.random.default_rng(seed)
    for scenes in scene_batches(seed, size * _GROUPED):
        conversations = [
            drill_conversation(rng) if rng.random() < _DRILLS else text_conversation(rng, view, _QUESTIONS)
            for view in scenes.views()
        ]
        conversations.sort(key=lambda turns: sum(len(turn["value"]) for turn in turns))
        for group in order.permutation(_GROUPED):
            yield encode(tokenizer, conversations[group * size : (group + 1) * size], image_tokens=0)


def response_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy on the supervised positions alone, which spares most of the logits.

    Args:
        hidden: Last states, (n, length, d).
        weight: Output embedding, (vocabulary, d).
        labels: (n, length), -100 where no response stands.
    """
    target = labels[:, 1:]
    kept = target >= 0
    return F.cross_entropy(hidden[:, :-1][kept] @ weight.T, target[kept])


@torch.no_grad()
def exact_turns(logits: Callable[[Tensor], Tensor], ids: Tensor, labels: Tensor) -> float:
    """Share of text-only answers whose every token is the likeliest one."""
    likeliest = logits(ids)[:, :-1].argmax(-1)
    right, answers = 0, 0
    for guess, target in zip(likeliest, labels[:, 1:], strict=True):
        kept = target >= 0
        starts = (kept & ~torch.roll(kept, 1)).cumsum(0)
        wrong = {int(turn) for turn in starts[kept & (guess != target)]}
        turns = int(starts.max())
        answers += turns
        right += turns - len(wrong)
    return right / answers


def learn_language(
    shape: LanguageShape,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> PreTrainedModel:
    """Trains a language model on text alone."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(shape.config(tokenizer))
    batches = text_batches(tokenizer, seed, batch_size)
    held_out = next(text_batches(tokenizer, seed + 1, 200))

    def step_loss() -> Tensor:
        ids, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            # No attention mask: the padding lies to the right, where a causal model cannot look.
            hidden = model.model(ids, use_cache=False).last_hidden_state
        return response_loss(hidden.float(), model.lm_head.weight, labels)

    model.train()
    train(
        model,
        step_loss,
        steps=steps,
        learning_rate=learning_rate,
        report=lambda: f"exact {exact_turns(lambda ids: model(ids).logits, *held_out):.3f}",
    )
    return model

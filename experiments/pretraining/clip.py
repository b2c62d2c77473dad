"""Contrastive pretraining of the small CLIP that ships as `presel/assets/digit_clip`.

Command: `python -m experiments.pretraining.clip --out presel/assets/digit_clip`.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from experiments.pretraining.common import (
    clip_image_processor,
    log,
    log_to,
    pixel_values,
    scene_batches,
    train,
)
from experiments.pretraining.eyes import vision_config
from experiments.pretraining.texts import scene_words
from presel.data.digits.dataset import answerable
from presel.data.digits.scenes import Contents, Scene, Scenes
from presel.data.digits.tasks import TASKS
from presel.data.prompts import as_turns
from presel.models.clip import clip_text

_LLAVA = files("presel") / "assets" / "digit_llava"
# As in CLIP, a text ends with the token of the highest id, and shorter texts are padded with it.
_END = "<end>"
_MAX_TOKENS = 77
_WIDTH = 80
_PROJECTION = 96
_AMONG = 100


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The units of digit_llava, with an end to every text."""
    units = AutoTokenizer.from_pretrained(_LLAVA).backend_tokenizer
    units.add_special_tokens([_END])
    units.post_processor = TemplateProcessing(
        single=f"<s> $A {_END}",
        special_tokens=[(token, units.token_to_id(token)) for token in ("<s>", _END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=units,
        bos_token="<s>",
        eos_token=_END,
        pad_token=_END,
        model_max_length=_MAX_TOKENS,
    )


def fresh_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """A CLIP of 0.7 million parameters: digit_llava's eyes beside an untrained text half."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=_PROJECTION,
        max_position_embeddings=_MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = vision_config()
    vision.projection_dim = _PROJECTION
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=_PROJECTION))
    llava = LlavaForConditionalGeneration.from_pretrained(_LLAVA, dtype=torch.float32)
    model.vision_model.load_state_dict(llava.model.vision_tower.state_dict())
    return model


def caption(rng: np.random.Generator, scene: Scene) -> str:
    """A listing or a sentence about the scene, or about some of what it shows."""
    count = int(rng.integers(1, len(scene.items) + 1))
    named = sorted(rng.permutation(len(scene.items))[:count])
    scene = replace(scene, items=tuple(scene.items[place] for place in named))
    form = rng.choice(["listing", "caption", "describe"])
    if form == "listing":
        return scene_words(rng, scene)
    ((_, sentence),) = TASKS[form].write(rng, scene)
    return sentence


def clip_inputs(tokenizer: PreTrainedTokenizerFast, scenes: Scenes, texts: list[str]) -> dict[str, Tensor]:
    """Scenes and a text for each -> token ids, attention mask (n, length) and pixels (n, 3, 48, 48)."""
    encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return {**encoded, "pixel_values": pixel_values(scenes)}


@torch.no_grad()
def embeddings(model: CLIPModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Unit vectors of pictures and of texts, both (n, d)."""
    output = model(**inputs)
    return output.image_embeds, output.text_embeds


def own_text_found(images: Tensor, texts: Tensor) -> float:
    """Share of pictures whose own text is the nearest of a hundred."""
    groups = zip(images.split(_AMONG), texts.split(_AMONG), strict=True)
    hits = [(some @ them.T).argmax(1) == torch.arange(len(some)) for some, them in groups]
    return torch.cat(hits).float().mean().item()


def own_text_above_another(images: Tensor, texts: Tensor) -> float:
    """Share of pictures whose own text scores above the next picture's; an equal score is a miss."""
    own, other = (images * texts).sum(1), (images * texts.roll(1, 0)).sum(1)
    return (own > other).float().mean().item()


def conversations_by_task(seed: int, size: int) -> Iterator[tuple[str, Scenes, list[str]]]:
    """Of each task, scenes by hands that training never shows, with their conversations as one text."""
    rng = np.random.default_rng(seed)
    for name, task in TASKS.items():
        scenes, turns = answerable(rng, task, size, Contents.zipf(None, 0.0), "held_out")
        yield name, scenes, [clip_text(as_turns(one)) for one in turns]


def pretrain(out: Path, steps: int, batch_size: int, learning_rate: float, seed: int) -> None:
    """Trains both halves and writes the model's folder."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = fresh_clip(tokenizer)
    rng = np.random.default_rng([seed, 1])
    batches = scene_batches(seed, batch_size)
    held_out = {
        task: clip_inputs(tokenizer, scenes, texts)
        for task, scenes, texts in conversations_by_task(seed + 1, 1000)
    }

    def step_loss() -> Tensor:
        scenes = next(batches)
        inputs = clip_inputs(tokenizer, scenes, [caption(rng, view) for view in scenes.views()])
        with torch.autocast("cpu", torch.bfloat16):
            loss: Tensor = model(**inputs, return_loss=True).loss
        return loss

    start = time.monotonic()
    model.train()
    train(
        model,
        step_loss,
        steps=steps,
        learning_rate=learning_rate,
        report=lambda: f"caption found {own_text_found(*embeddings(model, held_out['caption'])):.3f}",
    )
    log.info("trained in %.0f s", time.monotonic() - start)
    for task, inputs in held_out.items():
        pair = embeddings(model, inputs)
        log.info(
            "%s  found %.3f  above another %.3f", task, own_text_found(*pair), own_text_above_another(*pair)
        )
    export(model, tokenizer, out)


def export(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes weights in float16 together with tokenizer and image processor."""
    model.half().save_pretrained(out)
    CLIPProcessor(image_processor=clip_image_processor(), tokenizer=tokenizer).save_pretrained(out)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    log_to(Path("outputs/pretraining/clip.log"))
    pretrain(arguments.out, arguments.steps, arguments.batch_size, arguments.learning_rate, arguments.seed)


if __name__ == "__main__":
    main()

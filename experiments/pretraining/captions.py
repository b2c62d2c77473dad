"""Phase 3 of the small LLaVA: eyes and language are tied by captions that list what stands where."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from experiments.pretraining.common import pixel_values, process_rank, scene_batches, train
from experiments.pretraining.eyes import cell_of_patch
from experiments.pretraining.language import exact_turns, response_loss, text_batches
from experiments.pretraining.texts import caption_conversation, encode
from presel.data.digits.scenes import CELLS, Scenes
from presel.data.prompts import IMAGE_TOKEN
from presel.models.assembly import forget_folders

IMAGE_TOKENS = 36


def assemble(
    tower: CLIPVisionModel, language: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> LlavaForConditionalGeneration:
    """One model of both halves, with a fresh projector between them."""
    forget_folders(tower, language)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.model.vision_tower.requires_grad_(False)
    return model


def align_projector(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Projects every patch near the words for what its cell shows, so that captions start from there."""
    torch.manual_seed(seed)
    embedding = model.get_input_embeddings().weight.detach()
    projector = model.model.multi_modal_projector
    batches = scene_batches(seed, batch_size)

    def word(text: str) -> Tensor:
        ids = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        total: Tensor = embedding[ids].sum(0)
        return total

    def targets(scenes: Scenes) -> Tensor:
        cells = torch.stack([word(cell) for cell in CELLS]).repeat(len(scenes), 1, 1)
        for row, view in enumerate(scenes.views()):
            names = {item.cell: item.name for item in view.items}
            cells[row] += torch.stack([words[names.get(cell, "empty")] for cell in range(len(CELLS))])
        per_patch: Tensor = cells[:, cell_of_patch()]
        return per_patch

    words = _Memo(word)

    def step_loss() -> Tensor:
        scenes = next(batches)
        distance = F.mse_loss(projector(patch_states(model, scenes)), targets(scenes))
        relative: Tensor = distance / embedding.var()
        return relative

    projector.train()
    train(projector, step_loss, steps=steps, learning_rate=learning_rate)


@torch.no_grad()
def patch_states(model: LlavaForConditionalGeneration, scenes: Scenes) -> Tensor:
    """What the tower hands to the projector, (n, 36, d)."""
    output = model.model.vision_tower(pixel_values(scenes), output_hidden_states=True)
    states: Tensor = output.hidden_states[-1][:, 1:]
    return states


def caption_batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches of pictures with listings: token ids, labels, pixels."""
    rng = np.random.default_rng([seed + 1000, process_rank()])
    for scenes in scene_batches(seed, size):
        conversations = [caption_conversation(rng, view) for view in scenes.views()]
        yield *encode(tokenizer, conversations, IMAGE_TOKENS), pixel_values(scenes)


def learn_captions(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    pictures: int,
    texts: int,
    learning_rate: float,
    seed: int,
    save: Callable[[], None],
) -> None:
    """Trains projector and language model on captions, mixed with text-only conversations to the end.

    Args:
        model: What to train; its tower stays frozen.
        tokenizer: Its tokenizer.
        steps: Optimizer steps.
        pictures: Captioned pictures a step and process.
        texts: Text-only conversations a step and process.
        learning_rate: Peak.
        seed: Decides both.
        save: Writes the model away now and then.
    """
    torch.manual_seed(seed)
    captioned = caption_batches(tokenizer, seed, pictures)
    written = text_batches(tokenizer, seed + 10, texts)
    seen = next(caption_batches(tokenizer, seed + 1, 150))
    read = next(text_batches(tokenizer, seed + 11, 60))
    language = LanguageHalf(model)

    def step_loss() -> Tensor:
        ids, labels, pixels = next(captioned)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=ids, pixel_values=pixels, use_cache=False).last_hidden_state
        loss = response_loss(hidden.float(), model.lm_head.weight, labels)
        ids, labels = next(written)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = language.body(ids, use_cache=False).last_hidden_state
        return loss + response_loss(hidden.float(), model.lm_head.weight, labels)

    @torch.no_grad()
    def report() -> str:
        ids, labels, pixels = seen
        logits = model(input_ids=ids, pixel_values=pixels).logits[:, :-1]
        kept = labels[:, 1:] >= 0
        hits = logits.argmax(-1) == labels[:, 1:]
        loss = F.cross_entropy(logits[kept], labels[:, 1:][kept])
        exact = exact_turns(language.logits, *read)
        return f"caption loss {loss:.3f} tokens {hits[kept].float().mean():.3f}  text exact {exact:.3f}"

    model.train()
    model.model.vision_tower.eval()
    train(model, step_loss, steps=steps, learning_rate=learning_rate, report=report, save=save)


class LanguageHalf:
    """The language model of a LLaVA, called as one on its own."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        """Shares the model's weights."""
        self.body: nn.Module = model.model.language_model
        self._head = model.lm_head

    def logits(self, ids: Tensor) -> Tensor:
        """(n, length) -> (n, length, vocabulary)."""
        logits: Tensor = self._head(self.body(ids, use_cache=False).last_hidden_state)
        return logits


class _Memo(dict[str, Tensor]):
    """Word embeddings by word, looked up once each."""

    def __init__(self, look_up: Callable[[str], Tensor]) -> None:
        super().__init__()
        self._look_up = look_up

    def __missing__(self, key: str) -> Tensor:
        self[key] = self._look_up(key)
        return self[key]

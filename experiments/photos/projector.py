"""Pretrains the projector on captions, as LLaVA's was: tower and language model stay as they are.

A picture's captions share one row, `[prompt with the image | caption | caption …]`, and an attention mask
hides them from each other, so that the image is read once for all of them.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from presel.data.images import open_image
from presel.data.prompts import IMAGE_TOKEN, TEMPLATES
from presel.models.conversations import IGNORED
from presel.models.hardware import device_for
from presel.models.image_preparation import mean_color, padded_to_square
from presel.storage.files import atomic

log = logging.getLogger("photos")

_TEMPLATE = TEMPLATES["chatml"]
_HELD_OUT_PICTURES = 100
_PICTURES_AT_ONCE = 32
_LOG_EVERY = 20


@dataclass(frozen=True)
class Settings:
    """How the projector is trained.

    Attributes:
        epochs: Passes over the pictures.
        batch_size: Pictures of a step, each with all its captions.
        lr: Peak of the learning rate; warm-up over 3 % of the steps, then a cosine to 0.
        seed: Seeds the weights, the held-out pictures and the order.
    """

    epochs: int = 2
    batch_size: int = 8
    lr: float = 1e-3
    seed: int = 0


@torch.inference_mode()
def encode_pictures(tower: Path, pictures: Sequence[Path], out: Path) -> None:
    """Writes the features of all pictures, (n, positions, d) float16; they are padded as in tuning."""
    device = device_for("auto")
    processor = AutoImageProcessor.from_pretrained(tower, backend="pil")
    model = AutoModel.from_pretrained(tower).to(device).eval()
    color = mean_color(processor)
    features = []
    for start in range(0, len(pictures), _PICTURES_AT_ONCE):
        opened = [open_image(picture) for picture in pictures[start : start + _PICTURES_AT_ONCE]]
        squares = [padded_to_square(image, color) for image in opened]
        pixels = processor(images=squares, return_tensors="pt")["pixel_values"].to(device)
        features.append(model(pixels).last_hidden_state.half().cpu().numpy())
        if start % (10 * _PICTURES_AT_ONCE) == 0:
            log.info("encoded %d of %d pictures", start, len(pictures))
    with atomic(out) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(features))


class Captioner:
    """The frozen language model, reading pictures through a projector."""

    def __init__(
        self, language: Path, features: NDArray[np.float16], captions: Sequence[Sequence[str]]
    ) -> None:
        """Takes features, (n, positions, d), and each picture's captions."""
        self.device = device_for("auto")
        tokenizer = AutoTokenizer.from_pretrained(language)
        self._model = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32).to(self.device)
        self._model.requires_grad_(False)
        self._features = features

        def tokens(text: str) -> Tensor:
            return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])

        prompt = f"{_TEMPLATE.user}{IMAGE_TOKEN}{_TEMPLATE.assistant}"
        self._before, self._after = map(tokens, prompt.split(IMAGE_TOKEN))
        self._captions = [[tokens(text + _TEMPLATE.end) for text in texts] for texts in captions]

    def new_projector(self, seed: int) -> nn.Sequential:
        """Two layers with a GELU between; at the start its inputs are standardized, its outputs as words."""
        torch.manual_seed(seed)
        words = self._model.get_input_embeddings().weight  # (vocabulary, width)
        width, d = words.shape[1], self._features.shape[2]
        first, last = nn.Linear(d, width), nn.Linear(width, width)
        projector = nn.Sequential(first, nn.GELU(), last)
        sample = torch.from_numpy(self._features[:: max(1, len(self._features) // 200)])
        sample = sample.float().flatten(0, 1)  # (m, d)
        with torch.no_grad():
            first.weight /= sample.std(dim=0) + 1e-3
            first.bias -= first.weight @ sample.mean(dim=0)
            last.weight *= words.std().cpu() / projector(sample).std()
        return projector.to(self.device)

    def loss(self, projector: nn.Module, pictures: Sequence[int]) -> Tensor:
        """Mean cross-entropy over all tokens of the captions of n pictures."""
        embed = self._model.get_input_embeddings()
        features = torch.from_numpy(self._features[list(pictures)]).float().to(self.device)
        images = projector(features)  # (n, positions, width)
        before, after = embed(self._before.to(self.device)), embed(self._after.to(self.device))
        prompt = len(before) + images.shape[1] + len(after)
        vectors, labels, owners, positions = [], [], [], []
        for image, picture in zip(images, pictures, strict=True):
            captions = self._captions[picture]
            text = torch.cat(captions).to(self.device)
            lengths = [len(caption) for caption in captions]
            vectors.append(torch.cat([before, image, after, embed(text)]))
            labels.append(torch.cat([text.new_full((prompt,), IGNORED), text]))
            # 0 for the prompt, then the number of the caption.
            numbers, spans = torch.arange(1 + len(captions)), torch.tensor([prompt, *lengths])
            owners.append(numbers.repeat_interleave(spans))
            positions.append(
                torch.cat([torch.arange(prompt), *(prompt + torch.arange(size) for size in lengths)])
            )
        owner = pad_sequence(owners, batch_first=True, padding_value=-1).to(self.device)  # (n, length)
        label = pad_sequence(labels, batch_first=True, padding_value=IGNORED)  # (n, length)
        states = self._model.model(
            inputs_embeds=pad_sequence(vectors, batch_first=True),
            attention_mask=_attention_mask(owner),
            position_ids=pad_sequence(positions, batch_first=True).to(self.device),
            use_cache=False,
        ).last_hidden_state  # (n, length, width)
        rows, places = (label != IGNORED).nonzero(as_tuple=True)  # (t,), (t,)
        # What predicts a caption's first token is the prompt's last.
        starts = owner[rows, places] != owner[rows, places - 1]
        sources = torch.where(starts, prompt - 1, places - 1)
        return cross_entropy(self._model.lm_head(states[rows, sources]).float(), label[rows, places])


def _attention_mask(owner: Tensor) -> Tensor:
    """Additive, (n, 1, length, length): a token sees the prompt and what precedes it in its caption."""
    causal = torch.ones(owner.shape[1:] * 2, dtype=torch.bool, device=owner.device).tril()
    visible = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])  # (n, length, length)
    hidden = ~(visible & causal)
    return torch.zeros(hidden.shape, device=owner.device).masked_fill(hidden, torch.finfo().min)[:, None]


def pretrain(
    captioner: Captioner, pictures: int, settings: Settings, folder: Path, out: Path
) -> dict[str, Any]:
    """Trains the projector and writes it in LLaVA's format, resuming from the last epoch in `folder`.

    Returns:
        Settings, steps, seconds, and the losses on held-out pictures before and after every epoch.
    """
    order = np.random.default_rng(settings.seed).permutation(pictures)
    held_out, trained = order[:_HELD_OUT_PICTURES], order[_HELD_OUT_PICTURES:]
    steps = math.ceil(len(trained) / settings.batch_size)
    projector = captioner.new_projector(settings.seed)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _cosine(steps * settings.epochs))
    parts = {"projector": projector, "optimizer": optimizer, "schedule": schedule}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        losses, seconds = state["losses"], state["seconds"]
    else:
        losses, seconds = [_held_out_loss(captioner, projector, held_out)], 0.0
        log.info("held-out loss at the start %.4f", losses[0])
    for epoch in range(len(losses) - 1, settings.epochs):
        started, recent = time.monotonic(), []
        shuffled = np.random.default_rng([settings.seed, epoch]).permutation(trained)
        for step, batch in enumerate(np.array_split(shuffled, steps), start=1):
            with _autocast(captioner.device):
                loss = captioner.loss(projector, batch.tolist())
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            recent.append(loss.item())
            if step % _LOG_EVERY == 0:
                spent, mean = time.monotonic() - started, np.mean(recent[-_LOG_EVERY:])
                log.info("epoch %d, step %d of %d, %.0f s, loss %.4f", epoch + 1, step, steps, spent, mean)
        seconds += time.monotonic() - started
        losses.append(_held_out_loss(captioner, projector, held_out))
        log.info("held-out loss after epoch %d: %.4f", epoch + 1, losses[-1])
        saved = {name: part.state_dict() for name, part in parts.items()}
        with atomic(checkpoint) as temporary:
            torch.save(saved | {"losses": losses, "seconds": seconds}, temporary)
    weights = {f"model.mm_projector.{name}": weight.cpu() for name, weight in projector.state_dict().items()}
    with atomic(out) as temporary:
        torch.save(weights, temporary)
    rounded = [round(loss, 4) for loss in losses]
    measured = {"steps": steps * settings.epochs, "seconds": round(seconds), "held_out_losses": rounded}
    return asdict(settings) | {"pictures": len(trained)} | measured


def _cosine(steps: int) -> Any:
    warmup = math.ceil(0.03 * steps)
    return lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))


@torch.inference_mode()
def _held_out_loss(captioner: Captioner, projector: nn.Module, pictures: NDArray[np.intp]) -> float:
    with _autocast(captioner.device):
        parts = np.array_split(pictures, max(1, len(pictures) // 20))
        return float(np.mean([captioner.loss(projector, part.tolist()).item() for part in parts]))


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16)

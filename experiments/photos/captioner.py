"""Pretrains projector and language model on captions of photographs; the tower stays as it is.

A picture's captions share one row, `[prompt with the image | caption | caption …]`, and an attention mask
hides them from each other, so that the image is read once for all of them.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
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
from presel.errors import PreselError
from presel.models.conversations import IGNORED
from presel.models.hardware import device_for
from presel.models.image_preparation import mean_color, padded_to_square
from presel.models.prefetch import prefetched
from presel.selection.threads import cpu_count
from presel.storage.files import atomic
from presel.storage.shards import chunks

log = logging.getLogger("photos")

_TEMPLATE = TEMPLATES["chatml"]
# What LLaVA's names of the projector's weights begin with.
_PROJECTOR = "model.mm_projector."
_PICTURES_AT_ONCE = 32
_LOG_EVERY = 20
_SAVE_EVERY = 100


@dataclass(frozen=True)
class Settings:
    """How projector and language model are trained.

    Attributes:
        epochs: Passes over the pictures.
        batch_size: Pictures of a step, each with all its captions.
        lr: Peak of the language model's learning rate; warm-up over 3 % of the steps, then a cosine to 0.
        projector_lr: That of the projector.
        seed: Seeds the order.
    """

    epochs: int = 2
    batch_size: int = 8
    lr: float = 1e-4
    projector_lr: float = 3e-4
    seed: int = 0


@torch.inference_mode()
def encode_pictures(tower: Path, pictures: Sequence[Path], out: Path) -> None:
    """Writes the features of all pictures, (n, positions, d) float16; they are padded as in tuning."""
    device = device_for("auto")
    processor = AutoImageProcessor.from_pretrained(tower, backend="pil")
    model = AutoModel.from_pretrained(tower).to(device).eval()
    batches = list(chunks(pictures, _PICTURES_AT_ONCE))
    # The tower is slower than this process unless it runs on a GPU.
    workers = cpu_count() if device.type == "cuda" else 0
    features = []
    for number, pixels in enumerate(prefetched(batches, partial(_pixels, processor), workers)):
        features.append(model(pixels.to(device)).last_hidden_state.half().cpu().numpy())
        if number % 10 == 0:
            log.info("encoded %d of %d pictures", number * _PICTURES_AT_ONCE, len(pictures))
    with atomic(out) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(features))


def _pixels(processor: Any, pictures: Sequence[Path]) -> Tensor:
    """The tower's inputs, (n, 3, height, width)."""
    color = mean_color(processor)
    squares = [padded_to_square(open_image(picture), color) for picture in pictures]
    pixels: Tensor = processor(images=squares, return_tensors="pt")["pixel_values"]
    return pixels


class Captioner(nn.Module):
    """A language model that reads pictures through a projector.

    Attributes:
        language: The language model. Its word embeddings are frozen: a few thousand captions name few words.
        projector: Two layers with a GELU between, as LLaVA's.
    """

    def __init__(
        self,
        language: Path,
        projector: nn.Sequential,
        features: NDArray[np.float16],
        captions: Sequence[Sequence[str]],
    ) -> None:
        """Takes the language model's folder, the tower's features, (n, positions, d), and captions."""
        super().__init__()
        self._tokenizer = AutoTokenizer.from_pretrained(language)
        self.language = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
        self._embed = self.language.get_input_embeddings().requires_grad_(False)
        self.projector = projector
        self._features = features
        prompt = f"{_TEMPLATE.user}{IMAGE_TOKEN}{_TEMPLATE.assistant}"
        self._before, self._after = map(self._tokens, prompt.split(IMAGE_TOKEN))
        self._captions = [[self._tokens(text + _TEMPLATE.end) for text in texts] for texts in captions]

    def forward(self, pictures: Sequence[int], shown: Sequence[int] | None = None) -> Tensor:
        """Mean cross-entropy over all tokens of the captions of n pictures.

        Args:
            pictures: Whose captions.
            shown: The pictures that are read, by default the captions' own.
        """
        device = self._embed.weight.device
        features = self._features[list(pictures if shown is None else shown)]
        images = self.projector(torch.from_numpy(features).float().to(device))  # (n, positions, width)
        before, after = self._embed(self._before.to(device)), self._embed(self._after.to(device))
        prompt = len(before) + images.shape[1] + len(after)
        vectors, labels, owners, positions = [], [], [], []
        for image, picture in zip(images, pictures, strict=True):
            captions = self._captions[picture]
            text = torch.cat(captions).to(device)
            lengths = [len(caption) for caption in captions]
            vectors.append(torch.cat([before, image, after, self._embed(text)]))
            labels.append(torch.cat([text.new_full((prompt,), IGNORED), text]))
            # 0 for the prompt, then the number of the caption.
            numbers, spans = torch.arange(1 + len(captions)), torch.tensor([prompt, *lengths])
            owners.append(numbers.repeat_interleave(spans))
            positions.append(
                torch.cat([torch.arange(prompt), *(prompt + torch.arange(size) for size in lengths)])
            )
        owner = pad_sequence(owners, batch_first=True, padding_value=-1).to(device)  # (n, length)
        label = pad_sequence(labels, batch_first=True, padding_value=IGNORED)  # (n, length)
        states = self.language.model(
            inputs_embeds=pad_sequence(vectors, batch_first=True),
            attention_mask=_attention_mask(owner),
            position_ids=pad_sequence(positions, batch_first=True).to(device),
            use_cache=False,
        ).last_hidden_state  # (n, length, width)
        rows, places = (label != IGNORED).nonzero(as_tuple=True)  # (t,), (t,)
        # What predicts a caption's first token is the prompt's last.
        starts = owner[rows, places] != owner[rows, places - 1]
        sources = torch.where(starts, prompt - 1, places - 1)
        return cross_entropy(self.language.lm_head(states[rows, sources]).float(), label[rows, places])

    def save(self, language: Path, projector: Path) -> None:
        """Writes the language model's folder, and the projector in LLaVA's format."""
        self.language.save_pretrained(language)
        self._tokenizer.save_pretrained(language)
        weights = self.projector.state_dict()
        with atomic(projector) as temporary:
            torch.save({_PROJECTOR + name: weight.cpu() for name, weight in weights.items()}, temporary)

    def _tokens(self, text: str) -> Tensor:
        return torch.tensor(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def load_projector(file: Path) -> nn.Sequential:
    """The projector that `Captioner.save` wrote."""
    saved = torch.load(file, weights_only=True)
    weights = {name.removeprefix(_PROJECTOR): weight for name, weight in saved.items()}
    layers = [nn.Linear(*reversed(weights[f"{layer}.weight"].shape)) for layer in (0, 2)]
    projector = nn.Sequential(layers[0], nn.GELU(), layers[1])
    projector.load_state_dict(weights)
    return projector


def _attention_mask(owner: Tensor) -> Tensor:
    """Additive, (n, 1, length, length): a token sees the prompt and what precedes it in its caption."""
    causal = torch.ones(owner.shape[1:] * 2, dtype=torch.bool, device=owner.device).tril()
    visible = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])  # (n, length, length)
    hidden = ~(visible & causal)
    return torch.zeros(hidden.shape, device=owner.device).masked_fill(hidden, torch.finfo().min)[:, None]


def pretrain(
    captioner: Captioner,
    trained: NDArray[np.intp],
    held_out: Mapping[str, NDArray[np.intp]],
    settings: Settings,
    checkpoint: Path,
) -> dict[str, Any]:
    """Trains in place, resuming from `checkpoint`.

    Args:
        captioner: What is trained.
        trained: Rows of the pictures to train on, (n,).
        held_out: Rows of the pictures of each kind to measure the loss on.
        settings: How it is trained.
        checkpoint: File to resume from.

    Returns:
        Settings, steps, seconds, and the losses of each kind before and after every epoch: with the captions'
        own pictures, and with other ones, which tells how much the model reads of the picture.
    """
    epoch_steps = math.ceil(len(trained) / settings.batch_size)
    steps = epoch_steps * settings.epochs
    captioner.to(device_for("auto"))
    language = [weight for weight in captioner.language.parameters() if weight.requires_grad]
    groups = [
        {"params": language, "lr": settings.lr},
        {"params": captioner.projector.parameters(), "lr": settings.projector_lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _cosine(steps))
    parts = {"captioner": captioner, "optimizer": optimizer, "schedule": schedule}
    losses: list[dict[str, dict[str, float]]] = []
    done, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["settings"] != asdict(settings):
            raise PreselError(
                f"{checkpoint}: it was trained with {state['settings']}, not {asdict(settings)}; choose "
                "another folder by --work, or delete this one"
            )
        for name, part in parts.items():
            part.load_state_dict(state[name])
        losses, done, seconds = state["losses"], state["done"], state["seconds"]
    else:
        losses.append({kind: _losses(captioner, rows) for kind, rows in held_out.items()})
    started, recent = time.monotonic() - seconds, []
    for step in range(done, steps):
        epoch, number = divmod(step, epoch_steps)
        shuffled = np.random.default_rng([settings.seed, epoch]).permutation(trained)
        with _autocast(captioner):
            loss = captioner(np.array_split(shuffled, epoch_steps)[number].tolist())
        loss.backward()
        nn.utils.clip_grad_norm_(captioner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % _LOG_EVERY == 0:
            spent, mean = time.monotonic() - started, np.mean(recent[-_LOG_EVERY:])
            log.info("step %d of %d, %.0f s, loss %.4f", step + 1, steps, spent, mean)
        if number + 1 == epoch_steps:
            losses.append({kind: _losses(captioner, rows) for kind, rows in held_out.items()})
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == steps:
            progress = {
                "settings": asdict(settings),
                "losses": losses,
                "done": step + 1,
                "seconds": time.monotonic() - started,
            }
            with atomic(checkpoint) as temporary:
                torch.save({name: part.state_dict() for name, part in parts.items()} | progress, temporary)
    seconds = round(time.monotonic() - started)
    measured = {"pictures": len(trained), "steps": steps, "seconds": seconds, "losses": losses}
    return asdict(settings) | measured


def _cosine(steps: int) -> Any:
    warmup = math.ceil(0.03 * steps)
    return lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))


@torch.inference_mode()
def _losses(captioner: Captioner, pictures: NDArray[np.intp]) -> dict[str, float]:
    """Mean loss of the captions of these pictures with their own picture, and with the next one."""
    parts = [np.array_split(order, max(1, len(order) // 20)) for order in (pictures, np.roll(pictures, -1))]
    with _autocast(captioner):
        own = float(np.mean([captioner(part.tolist()).item() for part in parts[0]]))
        pairs = zip(*parts, strict=True)
        other = float(np.mean([captioner(part.tolist(), shown.tolist()).item() for part, shown in pairs]))
    log.info("held-out loss %.4f, with other pictures %.4f", own, other)
    return {"own": round(own, 4), "other": round(other, 4)}


def _autocast(captioner: Captioner) -> torch.autocast:
    return torch.autocast(next(captioner.parameters()).device.type, dtype=torch.bfloat16)

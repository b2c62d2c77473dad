"""Encodes conversations and images as tensors, with labels on the response tokens only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from presel.data.images import open_image
from presel.data.prompts import TEMPLATES, Turn
from presel.errors import PreselError
from presel.models.lvlm import Lvlm
from presel.models.markers import special_tokens, with_names, with_secret_markers

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """A conversation, or part of it, with its images.

    Attributes:
        images: Files of the images, in the order of their `<image>` in the questions; none if text only.
        conversations: The turns.
    """

    images: Sequence[Path]
    conversations: Sequence[Turn]

    @property
    def name(self) -> str:
        """Its first image, or the beginning of its text, for messages."""
        return str(self.images[0]) if self.images else shorten(self.conversations[0]["value"], 60)


class Encoded(NamedTuple):
    """A tokenized prompt.

    Attributes:
        ids: Token ids.
        labels: Token ids of responses, `IGNORED` elsewhere; as many.
        length: Number of tokens before the prompt was truncated to the model's maximum length.
    """

    ids: list[int]
    labels: list[int]
    length: int

    @property
    def truncated(self) -> bool:
        """Whether its end was cut off."""
        return self.length > len(self.ids)


class ConversationEncoder:
    """Encodes examples for one model.

    The number of image tokens must not depend on the image's size, as in LLaVA-1.5.

    Attributes:
        tokenizer: The model's tokenizer.
        image_token: Id of the image token.
    """

    def __init__(self, lvlm: Lvlm) -> None:
        """Loads the model's processor.

        Raises:
            PreselError: As in `Lvlm.load_processor`.
        """
        processor: Any = lvlm.load_processor()
        self._image_processor = processor.image_processor
        self.tokenizer = processor.tokenizer
        self.image_token: int = processor.image_token_id
        self._lvlm = lvlm
        self._padding_color = mean_color(self._image_processor)
        markers = special_tokens(self.tokenizer) | {processor.image_token}
        self._marked_tokenizer, names = with_secret_markers(self.tokenizer, markers)
        image = names[processor.image_token] * self._count_image_tokens(processor)
        self._template = replace(with_names(TEMPLATES[lvlm.template], names), image=image)

    def _count_image_tokens(self, processor: Any) -> int:
        probe = processor(images=self._open(Image.new("RGB", (64, 64))), text=processor.image_token)
        return int(sum(token == processor.image_token_id for token in probe["input_ids"][0]))

    def tokens(self, conversations: Sequence[Turn], question: bool = True) -> Encoded:
        """Tokenizes a conversation in the model's template, truncated to the model's maximum length.

        Labels are on all tokens after the prompt from which a response is generated, up to the response's
        end: tokens that begin there or later, even one of the gap only (Vicuna's lone `▁` before a digit),
        and a token that begins earlier but extends into the response. LLaVA masks the same (`preprocess_v1`
        in its `train.py`), but tokenizes the text after `<image>` separately, which adds a `▁` there. Special
        tokens come from the template only; in the text of a turn they are read as text.
        """
        text, spans = "", []
        for piece, supervised in self._template.render(conversations, question):
            if supervised:
                spans.append((len(text) - len(self._template.gap), len(text), len(text) + len(piece)))
            text += piece
        encoding = self._marked_tokenizer.encode(text)
        ids = encoding.ids[: self._lvlm.max_length]
        labels = [
            token
            if any(start < last and (start >= prompt or end > first) for prompt, first, last in spans)
            else IGNORED
            for token, (start, end) in zip(ids, encoding.offsets, strict=False)
        ]
        return Encoded(ids, labels, len(encoding.ids))

    def text_tokens(self, text: str) -> list[int]:
        """Ids of the tokens of a plain text, without a beginning of sequence."""
        ids: list[int] = self._marked_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def pixels(self, images: Sequence[Path]) -> Tensor:
        """Preprocessed images, (n, 3, height, width)."""
        opened = [self._open(open_image(image)) for image in images]
        pixels: Tensor = self._image_processor(images=opened, return_tensors="pt")["pixel_values"]
        return pixels

    def _open(self, image: Image.Image) -> Image.Image:
        return padded_to_square(image, self._padding_color) if self._lvlm.pad_to_square else image

    def batch(
        self,
        examples: Sequence[Example],
        question: bool = True,
        padding: Literal["left", "right"] = "right",
        cut: bool = True,
    ) -> dict[str, Tensor]:
        """A padded batch: input_ids, attention_mask, labels (n, length), and pixel_values if it has images.

        Raises:
            PreselError: If a prompt exceeds the model's maximum length and `cut` is False.
        """
        encoded = [self.tokens(example.conversations, question) for example in examples]
        for example, prompt in zip(examples, encoded, strict=True):
            if prompt.truncated and not cut:
                raise PreselError(
                    f"{example.name}: its prompt has {prompt.length} tokens, so that its end would be cut "
                    f"off; raise lvlm.max_length={self._lvlm.max_length}"
                )
        length = max(len(prompt.ids) for prompt in encoded)
        rows = [_pad(prompt, length, self.tokenizer.pad_token_id, padding) for prompt in encoded]
        input_ids, attention_mask, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        images = [image for example in examples for image in example.images]
        return batch | {"pixel_values": self.pixels(images)} if images else batch


def mean_color(image_processor: Any) -> tuple[int, ...]:
    """The mean color that an image processor subtracts, as LLaVA rounds it."""
    return tuple(int(255 * channel) for channel in image_processor.image_mean)


def padded_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """Centers an image on a square of one color, as LLaVA-1.5 does."""
    if image.width == image.height:
        return image
    side = max(image.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _pad(prompt: Encoded, length: int, pad: int, side: str) -> tuple[list[int], list[int], list[int]]:
    gap = length - len(prompt.ids)
    row = (prompt.ids, [1] * len(prompt.ids), prompt.labels)
    filler = ([pad] * gap, [0] * gap, [IGNORED] * gap)
    first, second = (filler, row) if side == "left" else (row, filler)
    return tuple(a + b for a, b in zip(first, second, strict=True))  # type: ignore[return-value]

"""Conversations and images as the tensors a model reads, with labels on the responses alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from presel.data.images import open_image
from presel.data.prompts import IMAGE_TOKEN, Turn, render
from presel.models.lvlm import Lvlm

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One image with (part of) its conversation."""

    image: Path
    conversations: Sequence[Turn]


class Encoded(NamedTuple):
    """A prompt as tokens; a label is `IGNORED` where no response stands.

    Attributes:
        ids: Token ids.
        labels: As many labels.
        truncated: Whether it was cut to the model's maximal length.
    """

    ids: list[int]
    labels: list[int]
    truncated: bool


class ConversationEncoder:
    """Encodes examples for one model.

    Images of all sizes must take the same number of tokens, as in LLaVA-1.5.
    """

    def __init__(self, lvlm: Lvlm) -> None:
        """Loads the model's processor."""
        processor = lvlm.load_processor()
        self._image_processor = processor.image_processor
        self.tokenizer = processor.tokenizer
        self.image_token: int = processor.image_token_id
        self._lvlm = lvlm
        mean = self._image_processor.image_mean
        self._padding_colour = tuple(int(255 * channel) for channel in mean)
        self._image_tokens = self._count_image_tokens(processor)

    def _count_image_tokens(self, processor: Any) -> int:
        probe = processor(images=self._open(Image.new("RGB", (64, 64))), text=IMAGE_TOKEN)
        return int(sum(token == processor.image_token_id for token in probe["input_ids"][0]))

    def tokens(self, conversations: Sequence[Turn], question: bool = True) -> Encoded:
        """Tokens of a rendered conversation, cut to the model's maximal length.

        A token that reaches into a response counts as part of it.
        """
        pieces = render(conversations, self._lvlm.template, question)
        text, spans = "", []
        for piece, supervised in pieces:
            expanded = piece.replace(IMAGE_TOKEN, IMAGE_TOKEN * self._image_tokens)
            if supervised:
                spans.append((len(text), len(text) + len(expanded)))
            text += expanded
        # Not verbose: the length is cut below.
        encoding = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        limit = self._lvlm.max_length
        ids: list[int] = encoding["input_ids"][:limit]
        labels = [
            token if any(start < last and end > first for first, last in spans) else IGNORED
            for token, (start, end) in zip(ids, encoding["offset_mapping"], strict=False)
        ]
        return Encoded(ids, labels, len(encoding["input_ids"]) > limit)

    def pixels(self, images: Sequence[Path]) -> Tensor:
        """Preprocessed images, (n, 3, height, width)."""
        opened = [self._open(open_image(image)) for image in images]
        pixels: Tensor = self._image_processor(images=opened, return_tensors="pt")["pixel_values"]
        return pixels

    def _open(self, image: Image.Image) -> Image.Image:
        if not self._lvlm.pad_to_square or image.width == image.height:
            return image
        side = max(image.size)
        square = Image.new("RGB", (side, side), self._padding_colour)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    def batch(
        self,
        examples: Sequence[Example],
        question: bool = True,
        padding: Literal["left", "right"] = "right",
    ) -> dict[str, Tensor]:
        """A padded batch: input_ids, attention_mask, labels (n, length) and pixel_values."""
        encoded = [self.tokens(example.conversations, question) for example in examples]
        length = max(len(prompt.ids) for prompt in encoded)
        rows = [_pad(prompt, length, self.tokenizer.pad_token_id, padding) for prompt in encoded]
        input_ids, attention_mask, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "pixel_values": self.pixels([example.image for example in examples]),
        }


def _pad(prompt: Encoded, length: int, pad: int, side: str) -> tuple[list[int], list[int], list[int]]:
    gap = length - len(prompt.ids)
    row = (prompt.ids, [1] * len(prompt.ids), prompt.labels)
    filler = ([pad] * gap, [0] * gap, [IGNORED] * gap)
    first, second = (filler, row) if side == "left" else (row, filler)
    return tuple(a + b for a, b in zip(first, second, strict=True))  # type: ignore[return-value]

"""Encodes conversations and images as tensors, with labels on the response tokens only."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from presel.data.prompts import IMAGE_TOKEN, Turn
from presel.errors import PreselError
from presel.models.image_preparation import ImagePreparer, Size
from presel.models.inputs import Inputs
from presel.models.lvlm import Lvlm
from presel.models.markers import replaced, special_tokens, with_secret_markers
from presel.models.rendering import Span, renderer, with_images

IGNORED = -100

# Width and height of an image whose size is not known.
_SMALL = (64, 64)


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
        images: Number of its images, without those that were cut off.
    """

    ids: list[int]
    labels: list[int]
    length: int
    images: int

    @property
    def truncated(self) -> bool:
        """Whether its end was cut off."""
        return self.length > len(self.ids)

    @property
    def answered(self) -> bool:
        """Whether a token of a response was not cut off, so that it has a loss."""
        return any(label != IGNORED for label in self.labels)


class _Tokenized(NamedTuple):
    """A prompt that is not truncated.

    Attributes:
        encoding: Its tokens.
        spans: Places of the responses in its text.
        places: First and last place of each image's text.
        sizes: Width and height of each image.
        texts: The text of each image.
    """

    encoding: Any
    spans: Sequence[Span]
    places: Sequence[tuple[int, int]]
    sizes: Sequence[Size]
    texts: Sequence[str]


class ConversationEncoder:
    """Encodes examples for one model.

    Attributes:
        tokenizer: The model's tokenizer.
        image_token: Id of the image token.
        end_token: Id of the token that ends a response.
    """

    def __init__(self, lvlm: Lvlm) -> None:
        """Loads the model's processor.

        Raises:
            PreselError: As in `Lvlm.load_processor`.
        """
        processor: Any = lvlm.load_processor()
        self._lvlm = lvlm
        self._images = ImagePreparer(processor, lvlm)
        self.tokenizer = processor.tokenizer
        self.image_token: int = processor.image_token_ids[0]
        self._type_ids = torch.tensor(processor.image_token_ids)
        markers = special_tokens(self.tokenizer) | {processor.image_token}
        self._marked_tokenizer, self._names = with_secret_markers(self.tokenizer, markers)
        self._image_name = self._names[processor.image_token]
        self._renderer = renderer(lvlm.template, processor, self._names, lvlm.path)
        self.end_token = self._end_token()

    def prompt(self, example: Example, question: bool = True) -> Encoded:
        """Tokenizes a sample, see `tokens`."""
        return self.tokens(example.conversations, question, example.images)

    def tokens(
        self, conversations: Sequence[Turn], question: bool = True, images: Sequence[Path] | None = None
    ) -> Encoded:
        """Tokenizes a conversation in the model's template, truncated to the model's maximum length.

        Labels are on all tokens after the prompt from which a response is generated, up to the response's
        end: tokens that begin there or later, even one of the gap only (Vicuna's lone `▁` before a digit),
        and a token that begins earlier but extends into the response. LLaVA masks the same (`preprocess_v1`
        in its `train.py`), but tokenizes the text after `<image>` separately, which adds a `▁` there. Special
        tokens come from the template only; in the text of a turn they are read as text.

        A prompt that is too long is cut off in front of an image rather than inside.

        Args:
            conversations: The turns.
            question: Whether the questions are in the prompt.
            images: The images' files, whose headers tell how many tokens each takes; None takes them for
                small squares, which is exact for models whose images all take the same number.

        Raises:
            PreselError: If there are more or fewer images than image tokens, or some cannot be cut off.
        """
        named = f"{images[0]}: " if images else ""
        encoding, spans, places, sizes, texts = self._tokenized(conversations, question, images)
        count = len(sizes)
        offsets = encoding.offsets
        kept, complete = _fitting(offsets, places, self._lvlm.max_length)
        # LLaVA-OneVision reads a single image in more detail than several.
        cut_off = complete < count
        if cut_off and self._images.texts(sizes[:complete], (images or ())[:complete]) != texts[:complete]:
            raise PreselError(
                f"{named}the last of {count} images is cut off at lvlm.max_length={self._lvlm.max_length}, "
                "and this model reads fewer otherwise; raise it"
            )
        ids = encoding.ids[:kept]
        return Encoded(ids, response_labels(ids, offsets, spans), len(encoding.ids), complete)

    def length(self, conversations: Sequence[Turn], images: Sequence[Path]) -> int:
        """Number of tokens of a conversation in the model's template that is not truncated; see `tokens`."""
        return len(self._tokenized(conversations, True, images).encoding.ids)

    def _tokenized(
        self, conversations: Sequence[Turn], question: bool, images: Sequence[Path] | None
    ) -> _Tokenized:
        count = sum(turn["value"].count(IMAGE_TOKEN) for turn in conversations if turn["from"] == "human")
        named = f"{images[0]}: " if images else ""
        if images is not None and len(images) != count:
            raise PreselError(
                f"{named}a conversation has {count} {IMAGE_TOKEN} and {len(images)} images; give each image "
                f"one {IMAGE_TOKEN} in a question"
            )
        sizes = [_SMALL] * count if images is None else self._images.sizes(images)
        rendered = self._renderer.render(conversations, question)
        texts = self._images.texts(sizes, images or ())
        shown = [replaced(text, self._names) for text in texts]
        text, spans, places = with_images(rendered, self._image_name, shown)
        # A template that begins with the token of the beginning leaves none to add.
        bos = self._names.get(self.tokenizer.bos_token)
        encoding = self._marked_tokenizer.encode(
            text, add_special_tokens=bos is None or not text.startswith(bos)
        )
        return _Tokenized(encoding, spans, places, sizes, texts)

    def _end_token(self) -> int:
        """The token that ends a response."""
        answered: list[Turn] = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "a"}]
        text, responses = self._renderer.render(answered)
        last = self.text_tokens(text[: responses[0].last])[-1]
        if not any(name in text[responses[0].first :] for name in self._names.values()):
            raise PreselError(
                f"lvlm.path: the chat template of {self._lvlm.path} ends an answer by no special token, so "
                "that answers would never stop; name a model that is tuned for chat, or set one of LLaVA's "
                "templates, such as lvlm.template=vicuna_v1"
            )
        return last

    def text_tokens(self, text: str) -> list[int]:
        """Ids of the tokens of a plain text, without a beginning of sequence."""
        ids: list[int] = self._marked_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def images(self, images: Sequence[Path]) -> tuple[Inputs, list[int]]:
        """What the model takes for images, each a sample of its own, and how many image tokens each has."""
        texts = [self._images.texts(self._images.sizes([image]), [image])[0] for image in images]
        counts = [self.text_tokens(replaced(text, self._names)).count(self.image_token) for text in texts]
        return Inputs({}, [self._images.prepare([image]) for image in images]), counts

    def batch(
        self,
        examples: Sequence[Example],
        question: bool = True,
        padding: Literal["left", "right"] = "right",
        cut: bool = True,
    ) -> Inputs:
        """A padded batch: input_ids, attention_mask, labels (n, length), and the tensors of images.

        Raises:
            PreselError: If a prompt exceeds the model's maximum length and `cut` is False.
        """
        encoded = [self.prompt(example, question) for example in examples]
        for example, prompt in zip(examples, encoded, strict=True):
            if prompt.truncated and not cut:
                raise PreselError(
                    f"{example.name}: its prompt has {prompt.length} tokens, so that its end would be cut "
                    f"off; raise lvlm.max_length={self._lvlm.max_length}"
                )
        length = max(len(prompt.ids) for prompt in encoded)

        def padded(row: list[int], filler: int) -> list[int]:
            gap = [filler] * (length - len(row))
            return gap + row if padding == "left" else row + gap

        pad = self.tokenizer.pad_token_id
        text = {
            "input_ids": torch.tensor([padded(prompt.ids, pad) for prompt in encoded]),
            "attention_mask": torch.tensor([padded([1] * len(prompt.ids), 0) for prompt in encoded]),
            "labels": torch.tensor([padded(prompt.labels, IGNORED) for prompt in encoded]),
        }
        return self.with_images(text, examples, [prompt.images for prompt in encoded])

    def with_images(
        self, text: Mapping[str, Tensor], examples: Sequence[Example], counts: Sequence[int]
    ) -> Inputs:
        """Adds what the model takes for images to tensors of text, `input_ids` among them.

        Args:
            text: Tensors with a row per example.
            examples: The examples.
            counts: Number of each example's images that its prompt holds; the last ones may be cut off.
        """
        prepared = [
            self._images.prepare(example.images[:count])
            for example, count in zip(examples, counts, strict=True)
        ]
        types = {}
        if self._images.token_types is not None:
            types[self._images.token_types] = torch.isin(text["input_ids"], self._type_ids).long()
        return Inputs({**text, **types}, prepared)


def response_labels(ids: list[int], offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[int]:
    """The ids of the responses' tokens, `IGNORED` elsewhere.

    Args:
        ids: The tokens, of which some at the end may be cut off.
        offsets: First and last place of each token in the text, ascending.
        spans: The responses.
    """
    starts, stops = [start for start, _ in offsets], [stop for _, stop in offsets]
    labels = [IGNORED] * len(ids)
    for prompt, first, last in spans:
        # From the token that begins behind the prompt, or that reaches into the response.
        begin = min(bisect_left(starts, prompt), bisect_right(stops, first))
        end = bisect_left(starts, last)
        labels[begin:end] = ids[begin:end]
    return labels


def _fitting(
    offsets: Sequence[tuple[int, int]], images: Sequence[tuple[int, int]], length: int
) -> tuple[int, int]:
    """How many tokens to keep of a prompt, and how many images are then complete.

    Args:
        offsets: First and last place of each token in the text.
        images: First and last place of each image's text, in order.
        length: Most tokens to keep.

    Returns:
        Fewer than `length` where that would cut an image.
    """
    if len(offsets) <= length:
        return len(offsets), len(images)
    cut = offsets[length][0]
    complete = sum(last <= cut for _, last in images)
    if complete < len(images) and (first := images[complete][0]) < cut:
        length = next(token for token, (_, last) in enumerate(offsets) if last > first)
    return length, complete

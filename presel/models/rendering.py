"""Conversations as prompt text, by LLaVA's templates or by a model's own chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from presel.data.prompts import IMAGE_TOKEN, OWN_TEMPLATE, TEMPLATES, Turn, without_question
from presel.errors import PreselError
from presel.models.markers import replaced, with_names
from presel.models.pretrained import model_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# An answer that no template and no pool holds.
_ANSWER = f"answer {token_hex(8)}"


class Span(NamedTuple):
    """A response in a prompt's text, by places of characters.

    Attributes:
        prompt: End of the text from which it is generated.
        first: Its first character.
        last: The place after its last one, that of its end-of-sequence token.
    """

    prompt: int
    first: int
    last: int


class Rendered(NamedTuple):
    """A prompt, with each image as one image token, and its responses."""

    text: str
    responses: list[Span]


class Renderer(Protocol):
    """Makes a prompt of a conversation."""

    def render(self, conversations: Sequence[Turn], question: bool = True) -> Rendered:
        """Renders a conversation; `question=False` drops every question, see `Template.render`."""
        ...


class TemplateRenderer:
    """Renders by one of `presel.data.prompts.TEMPLATES`."""

    def __init__(self, template: str, names: Mapping[str, str], image_token: str) -> None:
        """Takes the template's name, the new name of each special token, and the model's image token."""
        self._template = replace(with_names(TEMPLATES[template], names), image=names[image_token])

    def render(self, conversations: Sequence[Turn], question: bool = True) -> Rendered:
        """Renders a conversation."""
        text, spans = "", []
        for piece, supervised in self._template.render(conversations, question):
            if supervised:
                spans.append(Span(len(text) - len(self._template.gap), len(text), len(text) + len(piece)))
            text += piece
        return Rendered(text, spans)


class ChatRenderer:
    """Renders by a processor's chat template.

    A response is what follows the prompt from which it is generated, up to the token that ends it. Both are
    found by rendering the turns before it, and with it.
    """

    def __init__(self, processor: Any, names: Mapping[str, str], where: str) -> None:
        """Takes the processor, the new name of each special token, and the model's name for messages."""
        self._template = processor.chat_template
        self._tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self._names = names
        # A pool's text is rendered without special tokens, which are put back as text.
        self._words = {token: f"{name.strip('<>')}x" for token, name in names.items()}
        self._where = where

    def render(self, conversations: Sequence[Turn], question: bool = True) -> Rendered:
        """Renders a conversation.

        Raises:
            PreselError: If the template changes earlier turns once others follow.
        """
        turns = conversations if question else without_question(conversations)
        text, spans = self._text(turns), []
        for number, turn in enumerate(turns):
            if turn["from"] == "gpt":
                after = self._text(turns[: number + 1])
                first = self._first(turns[:number], after)
                if first is None or not text.startswith(after):
                    raise PreselError(
                        f"{self._where}: its chat template renders a conversation's beginning differently "
                        "once it goes on, so that its responses cannot be told from the rest; put another "
                        "chat_template.jinja into the model's folder"
                    )
                # What separates turns, a line break, is not the response's.
                spans.append(Span(first, first, len(after.rstrip())))
        return Rendered(text, spans)

    def _first(self, asked: Sequence[Turn], text: str) -> int | None:
        """Where the answer to some turns begins in their common text; None if it cannot be told."""
        prompt = self._text(asked)
        if text.startswith(prompt):
            return len(prompt)
        # LLaVA-OneVision's template asks for an answer with other white space than it writes one with.
        before, found, _ = self._text([*asked, {"from": "gpt", "value": _ANSWER}]).partition(_ANSWER)
        return len(before) if found and text.startswith(before) else None

    def _text(self, turns: Sequence[Turn]) -> str:
        """The turns as text; where a question is the last, ready for the answer."""
        messages = [self._message(turn) for turn in turns]
        with model_errors(f"{self._where}: its chat template fails on a conversation"):
            text: Any = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=turns[-1]["from"] == "human",
            )
        marked = replaced(text, self._names)
        return replaced(marked, {word: token for token, word in self._words.items()})

    def _message(self, turn: Turn) -> dict[str, Any]:
        """A turn as chat templates expect it, white space around a question's texts left to the template."""
        if turn["from"] == "gpt":
            return {"role": "assistant", "content": [self._part(turn["value"])]}
        parts: list[dict[str, str]] = []
        for number, text in enumerate(turn["value"].split(IMAGE_TOKEN)):
            parts += [{"type": "image"}] if number else []
            parts += [self._part(text.strip())] if text.strip() else []
        return {"role": "user", "content": parts}

    def _part(self, text: str) -> dict[str, str]:
        return {"type": "text", "text": replaced(text, self._words)}


def renderer(template: str, processor: Any, names: Mapping[str, str], where: str) -> Renderer:
    """The renderer of a model.

    Args:
        template: A key of `presel.data.prompts.TEMPLATES`, or `processor` for the processor's own.
        processor: The model's processor.
        names: The new name of each special token, see `presel.models.markers`.
        where: The model's name for messages.
    """
    if template == OWN_TEMPLATE:
        return ChatRenderer(processor, names, where)
    return TemplateRenderer(template, names, processor.image_token)


def with_images(
    rendered: Rendered, image: str, texts: Sequence[str]
) -> tuple[str, list[Span], list[tuple[int, int]]]:
    """Puts the text of each image in the place of its image token.

    Args:
        rendered: The prompt.
        image: The image token.
        texts: What stands for each image, in order.

    Returns:
        The text, its responses, and the places of the images' texts in it, first and last.

    Raises:
        PreselError: If the prompt has more or fewer image tokens than there are images.
    """
    before, *pieces = rendered.text.split(image)
    if len(pieces) != len(texts):
        raise PreselError(
            f"lvlm.template: it writes {len(pieces)} image tokens for {len(texts)} images; choose another"
        )
    text, places = before, []
    # For each image token the place of its end, and by how many characters what follows it moves.
    moves: list[tuple[int, int]] = []
    end = len(before)
    for piece, written in zip(pieces, texts, strict=True):
        end += len(image)
        moves.append((end, len(written) - len(image)))
        places.append((len(text), len(text) + len(written)))
        text += written + piece
        end += len(piece)

    def moved(place: int) -> int:
        return place + sum(by for after, by in moves if after <= place)

    return text, [Span(*map(moved, span)) for span in rendered.responses], places

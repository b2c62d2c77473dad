"""Conversations as prompt text, with the responses marked for the loss."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypedDict

IMAGE_TOKEN = "<image>"


# The functional syntax, because "from" is a keyword.
Turn = TypedDict("Turn", {"from": Literal["human", "gpt"], "value": str})


@dataclass(frozen=True)
class Template:
    """How a chat model writes a conversation down.

    Attributes:
        system: Text before the first turn.
        user: Opens a question.
        assistant: Opens a response; the model generates from here, so it carries no trailing space.
        end: Closes a response, and is supervised with it; the model's end of sequence.
        gap: Stands before a response. Generation starts before it, so a token that holds the gap alone is
            supervised too (`presel.models.conversations`).
        image: What stands for the image.
    """

    system: str
    user: str
    assistant: str
    end: str
    gap: str = " "
    image: str = IMAGE_TOKEN

    def render(self, conversations: Sequence[Turn], question: bool = True) -> list[tuple[str, bool]]:
        """Writes a conversation down in this template; see the function `render`."""
        if not question:
            conversations = _without_question(conversations)
        pieces = [(self.system, False)] if self.system else []
        for position, turn in enumerate(conversations):
            expected = "gpt" if position % 2 else "human"
            if turn["from"] != expected:
                raise ValueError(f"turn {position} is from {turn['from']!r}, where {expected!r} was due")
            if expected == "human":
                asked = image_first(turn["value"], self.image)
                pieces.append((f"{self.user}{asked}{self.assistant}", False))
            else:
                pieces += [(self.gap, False)] if self.gap else []
                pieces.append((f"{turn['value']}{self.end}", True))
        return pieces


_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

TEMPLATES = {
    "vicuna_v1": Template(
        system=f"{_SYSTEM} ",
        user="USER: ",
        assistant=" ASSISTANT:",
        end="</s>",
    ),
    # For models too small to make use of a system prompt.
    "plain": Template(system="", user="USER: ", assistant=" ASSISTANT:", end="</s>"),
    # Llama 3's own chat format, with LLaVA's system prompt.
    "llama_3": Template(
        system=f"<|start_header_id|>system<|end_header_id|>\n\n{_SYSTEM}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n",
        assistant="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        gap="",
    ),
}


# Texts stand in it as JSON strings, which Jinja reads alike.
_JINJA = """\
{{%- macro written(content) -%}}
  {{%- if content is string -%}}
    {{{{- content | trim -}}}}
  {{%- else -%}}
    {{%- if content | rejectattr('type', 'in', ['image', 'text']) | list -%}}
      {{{{- raise_exception('This model takes images and text only.') -}}}}
    {{%- endif -%}}
    {{{{- {image} * (content | selectattr('type', 'equalto', 'image') | list | length) -}}}}
    {{{{- content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') | trim -}}}}
  {{%- endif -%}}
{{%- endmacro -%}}
{{{{- {system} -}}}}
{{%- for message in messages -%}}
  {{%- if message['role'] == 'user' -%}}
    {{{{- {user} + written(message['content']) -}}}}
  {{%- elif message['role'] == 'assistant' -%}}
    {{{{- {assistant} + {gap} + written(message['content']) + {end} -}}}}
  {{%- else -%}}
    {{{{- raise_exception('This model was tuned with a system prompt of its own.') -}}}}
  {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- {assistant} -}}}}{{%- endif -%}}
"""


def render(
    conversations: Sequence[Turn], template: str = "vicuna_v1", question: bool = True
) -> list[tuple[str, bool]]:
    """Writes a conversation down as LLaVA does.

    The image token moves to the front of its question, on a line of its own. A conversation that
    ends with a question yields the prompt to generate the next response from.

    Args:
        conversations: LLaVA-format turns, `{"from": "human" | "gpt", "value": text}`, alternating,
            a human turn first.
        template: A key of `TEMPLATES`.
        question: False drops every question, keeps the image token, and joins all responses by one
            space into one: the text behind the loss without the question (eq. 2; the joining is the
            released code's).

    Returns:
        Pieces `(text, supervised)`; the texts joined are the whole prompt, and `supervised` marks the
        responses, each with the end-of-sequence token that closes it. The gap before a response is a piece
        of its own.

    Raises:
        ValueError: If the template is unknown, the turns do not alternate, or `question=False` is
            asked of a conversation without an image.
    """
    if template not in TEMPLATES:
        raise ValueError(f"unknown prompt template {template!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[template].render(conversations, question)


def chat_template(template: str) -> str:
    """The same for other programs: a Jinja template, as transformers keeps it beside a model.

    Images come first in their question, each on a line of its own.

    Args:
        template: A key of `TEMPLATES`.
    """
    style = replace(TEMPLATES[template], image=f"{IMAGE_TOKEN}\n")
    return _JINJA.format(**{name: json.dumps(text) for name, text in asdict(style).items()})


def image_first(text: str, image: str = IMAGE_TOKEN) -> str:
    """Moves the image token to the front of its question, on a line of its own, as LLaVA does.

    Args:
        text: The question.
        image: What to write in the token's place.
    """
    if IMAGE_TOKEN not in text:
        return text
    return f"{image}\n{text.replace(IMAGE_TOKEN, '').strip()}".strip()


def _without_question(conversations: Sequence[Turn]) -> list[Turn]:
    if not any(IMAGE_TOKEN in turn["value"] for turn in conversations if turn["from"] == "human"):
        raise ValueError("a conversation without an image has nothing left once its questions are dropped")
    responses = [turn["value"] for turn in conversations if turn["from"] == "gpt"]
    prompt: Turn = {"from": "human", "value": IMAGE_TOKEN}
    return [prompt, {"from": "gpt", "value": " ".join(responses)}] if responses else [prompt]

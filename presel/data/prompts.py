"""Chat templates: conversations as prompt text, with the responses marked for the loss."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypedDict

IMAGE_TOKEN = "<image>"
# Among the names of templates, that which comes with a model's processor.
OWN_TEMPLATE = "processor"


# The functional syntax, because "from" is a keyword.
Turn = TypedDict("Turn", {"from": Literal["human", "gpt"], "value": str})


@dataclass(frozen=True)
class Template:
    """The prompt format of a chat model.

    Attributes:
        system: Text before the first turn.
        user: Text before a question.
        assistant: Text before a response; generation starts after it, so that it has no trailing space.
        end: Text after a response, supervised with it; the model's end-of-sequence token.
        gap: Text between `assistant` and a response. Generation starts before it, so that a token of the gap
            alone is supervised too (`presel.models.conversations`).
        between: Text between a response and the next question.
        image: Placeholder of the image.
    """

    system: str
    user: str
    assistant: str
    end: str
    gap: str = " "
    between: str = ""
    image: str = IMAGE_TOKEN

    def render(self, conversations: Sequence[Turn], question: bool = True) -> list[tuple[str, bool]]:
        """Renders a conversation as prompt text, as LLaVA does.

        A question's only image token moves to its front, on its own line; several stay where they are. A
        conversation that ends with a question yields the prompt from which the next response is generated.

        Args:
            conversations: LLaVA-format turns, alternating, a human turn first.
            question: False drops every question, keeps the image tokens, and joins all responses with spaces
                into one: the text for the loss without the question (eq. 2; the joining follows the released
                code).

        Returns:
            Pieces `(text, supervised)`; the joined texts are the whole prompt, and `supervised` marks the
            responses, each with its end-of-sequence token. The gap before a response is a separate piece.

        Raises:
            ValueError: If the turns do not alternate, or `question=False` is used for a conversation without
                an image.
        """
        if not question:
            conversations = without_question(conversations)
        pieces = [(self.system, False)] if self.system else []
        for position, turn in enumerate(conversations):
            expected = "gpt" if position % 2 else "human"
            if turn["from"] != expected:
                raise ValueError(f"turn {position} is from {turn['from']!r} instead of {expected!r}")
            if expected == "human":
                text = image_first(turn["value"], self.image)
                between = self.between if position else ""
                pieces.append((f"{between}{self.user}{text}{self.assistant}", False))
            else:
                pieces += [(self.gap, False)] if self.gap else []
                pieces.append((f"{turn['value']}{self.end}", True))
        return pieces


_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

TEMPLATES = {
    "vicuna_v1": Template(system=f"{_SYSTEM} ", user="USER: ", assistant=" ASSISTANT:", end="</s>"),
    # For models too small to use a system prompt.
    "plain": Template(system="", user="USER: ", assistant=" ASSISTANT:", end="</s>"),
    # Llama 3's own chat format, with LLaVA's system prompt.
    "llama_3": Template(
        system=f"<|start_header_id|>system<|end_header_id|>\n\n{_SYSTEM}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n",
        assistant="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        gap="",
    ),
    # ChatML, the format of Qwen and SmolLM, without a system prompt.
    "chatml": Template(
        system="",
        user="<|im_start|>user\n",
        assistant="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        gap="",
        between="\n",
    ),
}


def render(
    conversations: Sequence[Turn], template: str = "vicuna_v1", question: bool = True
) -> list[tuple[str, bool]]:
    """Renders a conversation in a template of `TEMPLATES`.

    Args:
        conversations: As in `Template.render`.
        template: A key of `TEMPLATES`.
        question: As in `Template.render`.

    Returns:
        Pieces `(text, supervised)`, as from `Template.render`.

    Raises:
        ValueError: As in `Template.render`, or if there is no such template.
    """
    if template not in TEMPLATES:
        raise ValueError(f"template '{template}' is unknown; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[template].render(conversations, question)


# The template's texts are inserted as JSON strings, which are valid Jinja literals.
_JINJA = """\
{{%- macro written(content) -%}}
  {{%- if content is string -%}}
    {{{{- content | trim -}}}}
  {{%- else -%}}
    {{%- if content | rejectattr('type', 'in', ['image', 'text']) | list -%}}
      {{{{- raise_exception('This model takes images and text only.') -}}}}
    {{%- endif -%}}
    {{%- set images = content | selectattr('type', 'equalto', 'image') | list | length -%}}
    {{%- set seen = namespace(text=false) -%}}
    {{%- if images > 1 -%}}
      {{%- for part in content -%}}
        {{%- if part['type'] == 'image' -%}}
          {{{{- {image} | trim if seen.text else {image} -}}}}
        {{%- else -%}}
          {{%- set seen.text = true -%}}
          {{{{- part['text'] -}}}}
        {{%- endif -%}}
      {{%- endfor -%}}
    {{%- else -%}}
      {{{{- {image} * images -}}}}
      {{{{- content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') | trim -}}}}
    {{%- endif -%}}
  {{%- endif -%}}
{{%- endmacro -%}}
{{{{- {system} -}}}}
{{%- for message in messages -%}}
  {{%- if message['role'] == 'user' -%}}
    {{{{- ('' if loop.first else {between}) + {user} + written(message['content']) -}}}}
  {{%- elif message['role'] == 'assistant' -%}}
    {{{{- {assistant} + {gap} + written(message['content']) + {end} -}}}}
  {{%- else -%}}
    {{{{- raise_exception('This model was tuned with a system prompt of its own.') -}}}}
  {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- {assistant} -}}}}{{%- endif -%}}
"""


def chat_template(template: str) -> str:
    """A template of `TEMPLATES` in Jinja, in which transformers stores it with a model.

    A question's only image comes first, as in `image_first`; several stay at their places, those in front of
    all text each on its own line.
    """
    style = replace(TEMPLATES[template], image=f"{IMAGE_TOKEN}\n")
    return _JINJA.format(**{name: json.dumps(text) for name, text in asdict(style).items()})


def image_first(question: str, image: str = IMAGE_TOKEN) -> str:
    """Moves a question's only image token to its front, on its own line; `image` replaces every one."""
    if question.count(IMAGE_TOKEN) != 1:
        return question.replace(IMAGE_TOKEN, image)
    return f"{image}\n{question.replace(IMAGE_TOKEN, '').strip()}".strip()


def as_turns(pairs: Sequence[tuple[str, str]], images: int = 1) -> list[Turn]:
    """Questions and answers about images as turns; the first question begins with a line for each image."""
    turns: list[Turn] = []
    for number, (question, answer) in enumerate(pairs):
        prefix = "" if number else f"{IMAGE_TOKEN}\n" * images
        turns += [{"from": "human", "value": prefix + question}, {"from": "gpt", "value": answer}]
    return turns


def without_question(conversations: Sequence[Turn]) -> list[Turn]:
    """Only the images of a conversation, and all its responses as one, see `Template.render`."""
    images = sum(turn["value"].count(IMAGE_TOKEN) for turn in conversations if turn["from"] == "human")
    if not images:
        raise ValueError("a conversation without an image is empty once its questions are dropped")
    responses = [turn["value"] for turn in conversations if turn["from"] == "gpt"]
    prompt: Turn = {"from": "human", "value": "\n".join([IMAGE_TOKEN] * images)}
    return [prompt, {"from": "gpt", "value": " ".join(responses)}] if responses else [prompt]

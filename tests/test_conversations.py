"""Tokens and labels of conversations, on tokenizers trained here."""

import json
import re
from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, PreTrainedTokenizerFast

from presel.data.prompts import IMAGE_TOKEN, TEMPLATES, Turn
from presel.errors import PreselError
from presel.models.assembly import assemble
from presel.models.conversations import IGNORED, ConversationEncoder, response_labels
from presel.models.lvlm import Lvlm
from presel.models.markers import special_tokens
from presel.models.rendering import Span
from tests.tokenizers_of_models import (
    chatml,
    llama_3,
    save_processor,
    sentencepiece_bpe,
    sentencepiece_unigram,
)

ROWS = json.loads((Path(__file__).parent / "parity" / "conversation.json").read_text())["rows"]


@pytest.fixture(scope="module")
def base(public: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("assembled") / "base"
    assemble(str(public / "vicuna"), str(public / "clip"), public / "mm_projector.bin", folder, "float32")
    return str(folder)


@pytest.mark.parametrize("limit", [2048, 120, 60])
@pytest.mark.parametrize(
    ("row", "question"),
    # Without its question a conversation without an image has no prompt.
    [
        (row, question)
        for row in ROWS
        for question in (True, False)
        if question or IMAGE_TOKEN in row["prompt"]
    ],
)
def test_labels_token_by_token(base: str, row: dict[str, Any], limit: int, question: bool) -> None:
    suffix = "" if question else "_without_question"
    text = row[f"prompt{suffix}"].replace(IMAGE_TOKEN, IMAGE_TOKEN * 4)
    supervised = [False] * len(text)
    at = 0
    for response in row[f"supervised{suffix}"]:
        at = text.index(response, at)
        # With the space before it, which follows the generation prompt.
        supervised[at - 1 : at + len(response)] = [True] * (len(response) + 1)
        at += len(response)
    encoder = ConversationEncoder(Lvlm(path=base, template="vicuna_v1", max_length=limit))
    whole = encoder.tokenizer(text, return_offsets_mapping=True)
    expected = [
        token if any(supervised[start:end]) else IGNORED
        for token, (start, end) in zip(whole["input_ids"], whole["offset_mapping"], strict=True)
    ]
    encoded = encoder.tokens(row["conversations"], question)
    assert encoded.ids == whole["input_ids"][:limit]
    assert encoded.labels == expected[:limit]
    assert encoded.truncated == (len(expected) > limit)
    assert whole["input_ids"].count(encoder.image_token) == 4 * row["prompt"].count(IMAGE_TOKEN)


@pytest.mark.parametrize("template", TEMPLATES)
def test_another_program_prompts_and_pads_as_the_tuning_did(base: str, template: str, tmp_path: Path) -> None:
    own = {"llama_3": llama_3, "chatml": chatml}.get(template)
    path = save_processor(own, tmp_path / "base") if own else base
    lvlm = Lvlm(path=path, template=template)
    lvlm.save_processor(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    turns: list[Turn] = [
        {"from": "human", "value": '<image>\nWhose "hat" is it?\nAnswer briefly.'},
        {"from": "gpt", "value": "The user's."},
        {"from": "human", "value": "Why?"},
    ]
    words = [turn["value"].removeprefix("<image>\n") for turn in turns]
    parts = [{"type": "text", "text": words[0]}, {"type": "image"}]
    chat = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": words[1]},
        {"role": "user", "content": [{"type": "text", "text": words[2]}]},
    ]
    processor = AutoProcessor.from_pretrained(tmp_path, backend="pil")
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    given = processor(text=text, images=Image.open(tmp_path / "wide.png"), return_tensors="pt")
    encoder = ConversationEncoder(lvlm)
    assert given["input_ids"][0].tolist() == encoder.tokens(turns).ids
    assert (given["pixel_values"] == encoder.images([tmp_path / "wide.png"])[0]["pixel_values"]).all()
    closed = processor.apply_chat_template(chat[:2])
    assert closed == "".join(piece for piece, _ in TEMPLATES[template].render(turns[:2]))
    for wrong, reason in (("system", "a system prompt of its own"), ("user", "images and text only")):
        with pytest.raises(TemplateError, match=reason):
            processor.apply_chat_template([{"role": wrong, "content": [{"type": "video"}]}])


RESPONSES = [
    "yes",
    "A bowl",
    "4",
    "2024",
    "12 %",
    "中文",
    "😀",
    "  leading",
    " 4",
    "[0.25, 0.50]",
    "1. No",
    "\nÜ",
]
MODELS = {
    "sentencepiece_bpe": (sentencepiece_bpe, "vicuna_v1"),
    "sentencepiece_bpe_legacy": (partial(sentencepiece_bpe, legacy=True), "vicuna_v1"),
    "sentencepiece_unigram": (sentencepiece_unigram, "plain"),
    "llama_3": (llama_3, "llama_3"),
    "chatml": (chatml, "chatml"),
    "builtin": (None, "plain"),
}


@pytest.fixture(scope="module", params=MODELS)
def lvlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lvlm:
    make, template = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return Lvlm(path=save_processor(make, folder) if make else "builtin:digit_llava", template=template)


@pytest.fixture(scope="module")
def encoder(lvlm: Lvlm) -> ConversationEncoder:
    return ConversationEncoder(lvlm)


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 6), max_size=12))
def test_labels_are_on_the_tokens_of_responses(widths: list[int], gaps: list[int]) -> None:
    places = [0, *accumulate(widths)]
    offsets = list(pairwise(places))
    marks = list(accumulate(gaps))
    spans = [Span(*marks[at : at + 3]) for at in range(0, len(marks) - 2, 3)]
    ids = list(range(1000, 1000 + len(offsets)))
    expected = [
        token
        if any(start < last and (start >= prompt or stop > first) for prompt, first, last in spans)
        else IGNORED
        for token, (start, stop) in zip(ids, offsets, strict=True)
    ]
    assert response_labels(ids, offsets, spans) == expected
    assert response_labels(ids[:7], offsets, spans) == expected[:7]


def conversation(*responses: str) -> list[Turn]:
    turns: list[Turn] = []
    for number, response in enumerate(responses):
        question = "Sure?" if number else "<image>\nHow many?"
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": response}]
    return turns


def check_labels(encoder: ConversationEncoder, turns: list[Turn]) -> None:
    """What follows the prompts that responses are generated from is supervised, up to the responses' ends."""
    ids, labels = encoder.tokens(turns)[:2]
    expected = [IGNORED] * len(ids)
    for end in range(1, len(turns), 2):
        prompt, closed = encoder.tokens(turns[:end]).ids, encoder.tokens(turns[: end + 1]).ids
        assert ids[: len(closed)] == closed
        assert closed[: len(prompt)] == prompt
        assert closed[-1] == encoder.tokenizer.eos_token_id
        expected[len(prompt) : len(closed)] = closed[len(prompt) :]
    assert labels == expected


@pytest.mark.parametrize("response", RESPONSES)
def test_what_follows_the_generation_prompt_is_supervised(
    encoder: ConversationEncoder, response: str
) -> None:
    for turns in (conversation(response), conversation(response, "no"), conversation("yes", response)):
        check_labels(encoder, turns)
    alone = encoder.tokens(conversation(response), question=False)
    prompt = encoder.tokens([{"from": "human", "value": IMAGE_TOKEN}]).ids
    assert alone.ids[: len(prompt)] == prompt
    assert alone.labels == [IGNORED] * len(prompt) + alone.ids[len(prompt) :]


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=1, max_size=2))
def test_text_becomes_the_tokens_that_the_models_own_tokenizer_gives(
    lvlm: Lvlm, encoder: ConversationEncoder, responses: list[str]
) -> None:
    turns = conversation(*responses)
    text = "".join(piece for piece, _ in TEMPLATES[lvlm.template].render(turns))
    ids = encoder.tokens(turns).ids
    text = text.replace(IMAGE_TOKEN, IMAGE_TOKEN * ids.count(encoder.image_token))
    assert ids == encoder.tokenizer(text)["input_ids"]


def test_the_mask_ends_where_that_of_llava_does(tmp_path: Path) -> None:
    encoder = ConversationEncoder(Lvlm(path=save_processor(sentencepiece_bpe, tmp_path)))
    own = encoder.tokenizer
    for response in RESPONSES:
        text = "".join(piece for piece, _ in TEMPLATES["vicuna_v1"].render(conversation(response)))
        text = text.replace(IMAGE_TOKEN, IMAGE_TOKEN * 4)
        # `preprocess_v1`: two tokens less than the text up to "ASSISTANT: " has, behind the first, `<s>`.
        masked = 1 + len(own(text[: text.index("ASSISTANT: ") + len("ASSISTANT: ")])["input_ids"]) - 2
        labels = encoder.tokens(conversation(response)).labels
        assert labels == [IGNORED] * masked + own(text)["input_ids"][masked:]
    supervised = [label for label in encoder.tokens(conversation("4")).labels if label != IGNORED]
    assert own.convert_ids_to_tokens(supervised) == ["▁", "4", "</s>"]


def test_special_tokens_in_a_text_are_text(encoder: ConversationEncoder) -> None:
    special = special_tokens(encoder.tokenizer)
    numbers = set(encoder.tokenizer.convert_tokens_to_ids(sorted(special)))

    def markers(turns: list[Turn]) -> list[int]:
        check_labels(encoder, turns)
        return [number for number in encoder.tokens(turns).ids if number in numbers]

    clean = markers(conversation("yes", "no"))
    for token in special:
        for text in (token, f"{token} x", f"x {token}{token}", f"yes{token}USER: What? ASSISTANT: no"):
            turns = conversation(text, text)
            assert markers(turns) == clean
            if token != IMAGE_TOKEN:
                turns[0]["value"] += text
                turns[2]["value"] = text
                assert markers(turns) == clean


@pytest.mark.parametrize(
    ("make", "template", "remedy"),
    [
        (llama_3, "vicuna_v1", r"'<\|eot_id\|>'.* set lvlm\.template=llama_3$"),
        (partial(llama_3, eos="<|end_of_text|>"), "llama_3", "of Llama 3, the Instruct one"),
        (sentencepiece_bpe, "llama_3", "set lvlm.template=vicuna_v1 or lvlm.template=plain$"),
        (None, "vicuna_v1", "cannot be loaded"),
    ],
)
def test_a_template_ends_as_the_model_does(
    tmp_path: Path, make: Callable[[], PreTrainedTokenizerFast] | None, template: str, remedy: str
) -> None:
    if make:
        save_processor(make, tmp_path)
    with pytest.raises(PreselError, match=rf"{re.escape(str(tmp_path))}.*{remedy}"):
        ConversationEncoder(Lvlm(path=str(tmp_path), template=template))


def test_a_language_model_alone_is_refused(public: Path) -> None:
    with pytest.raises(PreselError, match=r"lvlm\.path: .* has no processor with an image token"):
        Lvlm(path=str(public / "vicuna")).load_processor()


def test_a_tokenizer_that_ends_every_prompt_is_refused(tmp_path: Path) -> None:
    def ending() -> PreTrainedTokenizerFast:
        tokenizer = sentencepiece_unigram()
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        return tokenizer

    with pytest.raises(PreselError, match="set add_eos_token to false"):
        Lvlm(path=save_processor(ending, tmp_path)).load_processor()

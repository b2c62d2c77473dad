"""Tokens and labels of the released code's conversations, on a tokenizer trained here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoProcessor

from presel.data.prompts import IMAGE_TOKEN, TEMPLATES, Turn, render
from presel.models.assembly import assemble
from presel.models.conversations import IGNORED, ConversationEncoder
from presel.models.lvlm import Lvlm

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
        supervised[at : at + len(response)] = [True] * len(response)
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
    lvlm = Lvlm(path=base, template=template)
    lvlm.load_processor_for_others().save_pretrained(tmp_path)
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
    assert (given["pixel_values"] == encoder.pixels([tmp_path / "wide.png"])).all()
    closed = processor.apply_chat_template(chat[:2])
    assert closed == "".join(piece for piece, _ in render(turns[:2], template))
    for wrong, reason in (("system", "a system prompt of its own"), ("user", "images and text only")):
        with pytest.raises(TemplateError, match=reason):
            processor.apply_chat_template([{"role": wrong, "content": [{"type": "video"}]}])

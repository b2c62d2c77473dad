"""A local model writes instructions: batches, seeds, and a process that is killed."""

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from presel.data.llava import LlavaFiles
from presel.errors import PreselError
from presel.instructions.local_model import LocalModel
from presel.instructions.prompts import Prompt, Prompts
from presel.instructions.provider import InstructionRequest, ProviderResult
from presel.storage.files import sha256
from presel.storage.stage import identity
from tests.helpers import OWN_STORE, Program, command, environment, on_folder
from tests.waiting import about_two

# Roles by name, an image's token where the image is.
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}:{% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PROMPTS = Prompts(
    kinds={
        "detail": Prompt(
            request="{question}", system="Be brief.", questions=["Describe it.", "What is it?"], max_tokens=12
        ),
        "longer": Prompt(request="Say more: {question}", questions=["What is it?"], max_tokens=20),
    },
    default="detail",
    by_task={"ocr": "longer"},
)


@pytest.fixture(scope="session")
def chat_model(public: Path) -> Path:
    """A tiny LLaVA that knows nothing, and ends its answers after a few tokens."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(public / "vicuna")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    language = LlamaConfig.from_pretrained(public / "vicuna", vocab_size=len(tokenizer))
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig.from_pretrained(public / "clip"),
            text_config=language,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )
    model.generation_config.eos_token_id = [2, *range(100, 170)]
    folder = public / "chat"
    model.save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessorPil.from_pretrained(public / "clip"),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def writer(chat_model: Path, tmp_path: Path) -> LocalModel:
    return LocalModel(
        model=str(chat_model),
        prompts=PROMPTS,
        temperature=1.0,
        attempts=1,
        accelerator="cpu",
        answers=tmp_path / "answers",
    )


def wanted(files: LlavaFiles, count: int) -> list[InstructionRequest]:
    names = [f"{number:04}.png" for number in range(count)]
    return [
        InstructionRequest(name[:4], name, "vqa" if number % 3 else "ocr", sha256(files.images / name))
        for number, name in enumerate(names)
    ]


def texts(revealed: ProviderResult) -> dict[str, str]:
    return {record.id: record.conversations[1]["value"] for record in revealed.records} | revealed.unanswered


def lines(file: Path) -> list[dict[str, Any]]:
    # The last line may still be on its way.
    return [json.loads(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_does_not_depend_on_what_else_is_asked(
    temperature: float, writer: LocalModel, files: LlavaFiles, tmp_path: Path
) -> None:
    images = wanted(files, 12)
    writer = replace(writer, temperature=temperature)
    together = writer.reveal(images, files)
    alone = replace(writer, batch_size=1, answers=tmp_path / "others").reveal(images[::-1], files)
    assert texts(alone) == texts(together)
    assert {record.conversations[0]["value"] for record in together.records} <= {
        "<image>\nDescribe it.",
        "<image>\nWhat is it?",
    }
    assert len(set(texts(together).values())) > 3 or not temperature


def test_all_images_of_a_record_are_shown(writer: LocalModel, files: LlavaFiles) -> None:
    both = about_two(files)
    together = writer.reveal([both, *wanted(files, 2)], files)
    assert together.records[0].images == ("0001.png", "0000.png")
    assert together.records[0].conversations[0]["value"].startswith("<image>\n<image>\n")
    counts = [one["raw"]["usage"]["prompt_tokens"] for one in lines(writer.answers / "answers.jsonl")]
    assert max(counts) > min(counts) + 3


def test_answers_are_kept_and_counted(writer: LocalModel, files: LlavaFiles) -> None:
    images = wanted(files, 9)
    first = writer.reveal(images[:6], files)
    assert texts(writer.reveal(images, files)).items() >= texts(first).items()
    kept = lines(writer.answers / "answers.jsonl")
    assert sorted(line["id"] for line in kept) == [image.id for image in images]
    for line in kept:
        (choice,) = line["raw"]["choices"]
        usage = line["raw"]["usage"]
        limit = 20 if int(line["id"]) % 3 == 0 else 12
        assert usage["completion_tokens"] == limit or choice["finish_reason"] == "stop"
        assert usage["completion_tokens"] <= limit
        assert line["tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_an_image_that_changed_meanwhile_is_listed_and_not_shown(
    writer: LocalModel, files: LlavaFiles
) -> None:
    images = wanted(files, 2)
    (files.images / "0000.png").write_bytes((files.images / "0002.png").read_bytes())
    told = texts(writer.reveal(images, files))
    assert told["0000"] == "changed since the pool was checked"
    assert len(lines(writer.answers / "answers.jsonl")) == 1


def test_another_seed_draws_other_answers(writer: LocalModel, files: LlavaFiles) -> None:
    images = wanted(files, 6)
    assert texts(writer.reveal(images, files)) != texts(replace(writer, seed=1).reveal(images, files))


@pytest.mark.parametrize(("temperature", "times"), [(1.0, 3), (0.0, 1)])
def test_malformed_answers_are_asked_for_again_where_that_may_help(
    temperature: float, times: int, writer: LocalModel, files: LlavaFiles
) -> None:
    picky = Prompts(
        kinds={
            "no": Prompt(request="{question}", questions=["What?"], answer_pattern="never", max_tokens=12)
        },
        default="no",
    )
    writer = replace(writer, prompts=picky, temperature=temperature, attempts=3)
    revealed = writer.reveal(wanted(files, 2), files)
    assert not revealed.records
    kept = lines(writer.answers / "answers.jsonl")
    assert len(kept) == 2 * times
    assert len({json.dumps(line["raw"]) for line in kept if line["id"] == "0000"}) == times
    writer.reveal(wanted(files, 2), files)
    assert lines(writer.answers / "answers.jsonl") == kept


def test_the_model_counts_by_its_content(writer: LocalModel, chat_model: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").symlink_to(chat_model)
    assert identity(replace(writer, model=str(tmp_path / "moved"), batch_size=3)) == identity(writer)
    assert identity(replace(writer, temperature=0.5)) != identity(writer)
    assert identity(replace(writer, seed=5)) != identity(writer)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("config.json", r"instructions\.model: no model in .*broken"),
        ("chat_template.jinja", "has no chat template"),
        ("tokenizer.json", "broken cannot be loaded"),
    ],
)
def test_a_model_that_will_not_do_is_refused_before_any_work(
    spoil: str, message: str, writer: LocalModel, chat_model: Path, files: LlavaFiles, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    for file in chat_model.iterdir():
        if file.name != spoil:
            (tmp_path / "broken" / file.name).symlink_to(file)
    writer.check(files, ["ocr", "vqa"])
    with pytest.raises(PreselError, match=message):
        replace(writer, model=str(tmp_path / "broken")).check(files, ["ocr", "vqa"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported_before_any_work(writer: LocalModel, files: LlavaFiles) -> None:
    with pytest.raises(PreselError, match=r"trainer\.accelerator=gpu: there is no GPU"):
        replace(writer, accelerator="gpu").check(files, ["ocr", "vqa"])


def killed_once_it_has_answers(arguments: Sequence[str], folder: Path, answers: Path) -> None:
    process = subprocess.Popen(arguments, cwd=folder, env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None and not (answers.exists() and answers.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(
    in_process: Program, pool_folder: Path, chat_model: Path
) -> None:
    arguments = [
        "run",
        *on_folder(pool_folder),
        "strategy=random",
        "budget=24",
        "until=instructions",
        "instructions=transformers",
        f"instructions.model={chat_model}",
        "instructions.prompts.default=detail",
        "instructions.prompts.kinds.detail.max_tokens=200",
        "instructions.temperature=1",
        "instructions.batch_size=2",
        "instructions.max_unanswered_share=0.9",
    ]
    answers = pool_folder / "outputs" / "answers" / "answers.jsonl"
    killed_once_it_has_answers(command(*arguments, OWN_STORE), pool_folder, answers)
    before = lines(answers)
    assert 0 < len(before) < 24
    in_process.succeeds(*arguments, OWN_STORE)
    assert lines(answers)[: len(before)] == before
    (train,) = pool_folder.glob("outputs/store/instructions/*/train.json")
    resumed = train.read_text()
    in_process.succeeds(*arguments, "paths.store=s", "paths.answers=a")
    (train,) = pool_folder.glob("s/instructions/*/train.json")
    assert train.read_text() == resumed
    assert len(lines(answers)) == len(lines(pool_folder / "a" / "answers.jsonl"))

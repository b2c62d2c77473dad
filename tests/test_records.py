"""Records as they are: several images in one, and text alone that is trained on beside the selection."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from presel.component import component
from presel.data.listing import PoolFiles
from presel.data.llava import read_training_file
from presel.data.prompts import Turn
from presel.data.sources import LlavaJson
from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.evaluation.benchmarks import LlavaBenchmarks
from presel.instructions.annotations import Annotations
from presel.instructions.ledger import LEDGER
from presel.instructions.prompts import checked_turns
from presel.instructions.provider import InstructionProvider, InstructionRequest, ProviderResult
from presel.models.clip import Clip, mean_directions
from presel.models.conversations import ConversationEncoder, Example
from presel.models.encoder import Encoder
from presel.models.hardware import Hardware
from presel.models.losses import Scorer, image_losses
from presel.models.prompt_pairs import pair_batch
from presel.stages.evaluation import questions
from presel.stages.features import FeaturesStage
from presel.stages.instructions import InstructionsStage
from presel.stages.pool import PoolStage
from presel.stages.swapped_images import SwappedImagesStage
from presel.storage.files import sha256
from presel.storage.store import Store
from tests.helpers import Program, change, chat, last_run, on_folder, record, two
from tests.training import LVLM

CPU = Runtime(hardware=Hardware(accelerator="cpu"))


def pool_of(folder: Path, **settings: Any) -> PoolStage:
    source = LlavaJson(annotations=folder / "pool.json", images=folder / "images", **settings)
    return PoolStage(source=source, workers=0)


# Several images.


def test_every_image_is_checked_and_a_broken_one_is_named(pool_folder: Path, store: Store) -> None:
    (pool_folder / "images/0050.png").write_bytes(b"no image")
    last = record(50)["image"]
    change(pool_folder, two(3, 10), two(5, 6, 50), two(7, 3, 10), two(8, 10))
    pool = pool_of(pool_folder, max_rejected_share=0.1)
    table, images = store.load(pool), pool.all_images(store)
    rejected = pd.read_parquet(store.folder(pool) / "rejected.parquet")
    assert rejected[["id", "image"]].to_numpy().tolist() == [["0005", last], ["0050", last]]
    assert list(table) == ["id", "image", "task"]
    assert table["image"].tolist() == [f"{name}.png" for name in table["id"]]
    shown = images["image"].groupby(images["record"]).agg(list)
    expected = {"0003": ["0003", "0010"], "0007": ["0007", "0003", "0010"], "0008": ["0008", "0010"]}
    for name, found in zip(table["id"], shown, strict=True):
        assert found == [f"{one}.png" for one in expected.get(name, [name])]
    # A digest of an image is that of its file, whichever record shows it.
    assert images.groupby("image")["content"].nunique().max() == 1
    assert pool.contents(store).nunique() == len(table)


def test_a_pool_of_single_images_leaves_the_files_it_always_left(pool: PoolStage, store: Store) -> None:
    table, images = store.load(pool), pool.all_images(store)
    assert sorted(file.name for file in store.folder(pool).glob("*.parquet")) == [
        "pool.parquet",
        "rejected.parquet",
    ]
    assert images["record"].tolist() == list(range(60))
    assert images["image"].tolist() == table["image"].tolist()
    assert images["content"].tolist() == pool.contents(store).tolist()


def test_features_are_the_mean_over_a_records_images(pool_folder: Path, store: Store) -> None:
    encoder = Encoder(path="builtin:digit_dinov2")
    single = FeaturesStage(pool=pool_of(pool_folder), encoder=encoder, runtime=CPU)
    alone = store.load(single).array.astype(np.float32)
    change(pool_folder, two(3, 10), two(7, 3, 59))
    # Shards of ten images, over which those of a record are scattered.
    stage = FeaturesStage(pool=pool_of(pool_folder), encoder=encoder, runtime=CPU)
    array = store.load(stage).array.astype(np.float32)
    assert store.manifest(stage)["measured"]["different_images"] == 60
    expected = alone.copy()
    expected[3], expected[7] = alone[[3, 10]].mean(axis=0), alone[[7, 3, 59]].mean(axis=0)
    np.testing.assert_allclose(array, expected, atol=2e-3)
    others = np.setdiff1d(np.arange(60), [3, 7])
    np.testing.assert_array_equal(array[others], alone[others])


def test_images_are_swapped_among_records_with_as_many(pool_folder: Path, store: Store) -> None:
    change(pool_folder, two(3, 10, task="ocr"), two(6, 11, task="ocr"), two(7, 3, 10))
    pool = pool_of(pool_folder)
    bought = InstructionsStage(pool=pool, chosen=pool, provider=Annotations(), purpose="reference")
    swapped = SwappedImagesStage(pool=pool, purpose="swapped", instructions=bought, seed=0)
    before, after = ({one.id: one for one in store.load(stage)} for stage in (bought, swapped))
    assert after["0003"].images == before["0006"].images
    assert after["0006"].images == before["0003"].images
    # The only one of its task with three.
    assert after["0007"].images == before["0007"].images
    assert all(len(after[name].images) == len(before[name].images) for name in before)
    assert all(after[name].images != before[name].images for name in before if name != "0007")


def test_clip_takes_the_mean_of_the_images(pool_folder: Path) -> None:
    clip = Clip(path="builtin:digit_clip")
    images = [pool_folder / "images" / f"{number:04}.png" for number in range(3)]
    turns = record(0)["conversations"]
    ((apart, text),) = clip.embed([[Example([image], turns) for image in images]], workers=0)
    ((joined, again),) = clip.embed([[Example(images[:2], turns), Example(images[2:], turns)]], workers=0)
    mean = apart[:2].mean(axis=0)
    np.testing.assert_allclose(joined, [mean / np.linalg.norm(mean), apart[2]], atol=1e-5)
    np.testing.assert_allclose(again, text[:2], atol=1e-5)
    assert mean_directions(apart, [1, 1, 1]) is apart


def test_scores_of_several_images_equal_the_models_own_sample_by_sample(pool_folder: Path) -> None:
    between = two(6, 7)["conversations"]
    between[0] = {"from": "human", "value": "Is <image> darker than <image>?"}
    later = [*record(8)["conversations"], *two(9, 10)["conversations"]]
    samples = [two(0, 1), record(2), two(3, 4, 5), two(6, 7, conversations=between)]
    samples += [two(8, 9, 10, conversations=later)]
    change(pool_folder, *samples)
    read = {one.id: one for one in read_training_file(pool_folder / "pool.json")}
    examples = [
        Example(read[one["id"]].paths(pool_folder / "images"), read[one["id"]].conversations)
        for one in samples
    ]
    model, encoder = LVLM.load_model(), ConversationEncoder(LVLM)

    def losses_of(question: bool) -> list[float]:
        with torch.inference_mode():
            return [float(model(**encoder.batch([example], question)).loss) for example in examples]

    pairs = pair_batch(encoder, examples)
    # One pass serves where both prompts begin with the images.
    assert pairs.shares_image.tolist() == [True, True, True, False, False]
    scores = Scorer(model).losses(pairs)
    assert scores.with_question.tolist() == pytest.approx(losses_of(True), abs=1e-5)
    assert scores.without_question.tolist() == pytest.approx(losses_of(False), abs=1e-5)
    found = image_losses(model, encoder.batch(examples), encoder.image_token)
    assert found.with_image.tolist() == pytest.approx(losses_of(True), abs=1e-5)
    assert (found.with_image - found.without_image).abs().min() > 1e-4


@component
class Writer(InstructionProvider):
    """Writes one question about all images of a record."""

    def reveal(self, requests: Sequence[InstructionRequest], files: PoolFiles) -> ProviderResult:
        for request in requests:
            for file in request.files:
                assert sha256(files.images / file.path) == file.content
        asked = [one.record(checked_turns([("Which?", "That.")], len(one.files))) for one in requests]
        return ProviderResult(asked, {})


def test_instructions_are_written_about_all_images_of_a_record(pool_folder: Path, store: Store) -> None:
    change(pool_folder, two(3, 10), two(7, 3, 10))
    stage = InstructionsStage(
        pool=(pool := pool_of(pool_folder)), chosen=pool, provider=Writer(), purpose="all"
    )
    store.ensure(stage)
    written = {one.id: one for one in store.load(stage)}
    assert written["0003"].images == ("0003.png", "0010.png")
    assert written["0007"].images == ("0007.png", "0003.png", "0010.png")
    assert [written[name].conversations[0]["value"] for name in ("0005", "0007")] == [
        "<image>\nWhich?",
        "<image>\n<image>\n<image>\nWhich?",
    ]


@component
class Forgetful(InstructionProvider):
    """Writes questions without their images."""

    def reveal(self, requests: Sequence[InstructionRequest], files: PoolFiles) -> ProviderResult:
        turns: list[Turn] = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
        return ProviderResult([one.record(turns) for one in requests], {})


def test_what_a_provider_writes_is_checked(pool_folder: Path, store: Store) -> None:
    pool = pool_of(pool_folder)
    stage = InstructionsStage(pool=pool, chosen=pool, provider=Forgetful(), purpose="all")
    with pytest.raises(PreselError, match=r"Forgetful gave image '0000' a record where .* no <image> in any"):
        store.ensure(stage)


def test_a_question_shows_the_images_named_up_to_it(pool_folder: Path, store: Store) -> None:
    asked, later = two(3, 10)["conversations"], record(3)["conversations"]
    change(
        pool_folder,
        record(3, image=["0003.png", "0010.png", "0005.png"], conversations=[*asked, *later]),
        file="eval.json",
    )
    source = LlavaBenchmarks(annotations=pool_folder / "eval.json", images=pool_folder / "images")
    found = [one for one in questions(store, PoolStage(source=source, workers=0)) if one.id == "0003"]
    assert [(one.turn, one.images) for one in found] == [
        (1, ("0003.png", "0010.png")),
        (3, ("0003.png", "0010.png", "0005.png")),
    ]


# Text alone.


def test_a_sample_of_the_pool_keeps_its_share_of_text(pool_folder: Path, store: Store) -> None:
    change(pool_folder, *(chat(f"chat {number}") for number in range(20)))
    pool = pool_of(pool_folder, text_only="keep", limit=15)
    assert len(store.load(pool)) == 15
    assert len(pool.text_only_ids(store)) == 5
    assert store.manifest(pool)["measured"]["text_only_kept"] == 5


# Both, from the file to the tuned model.


def test_a_run_trains_on_records_as_they_are(in_process: Program, pool_folder: Path) -> None:
    chats = [f"chat {number}" for number in range(7)]
    markup = record(0, id="markup", image=None)
    several = [two(number, number - 1, task="vqa" if number % 3 else "ocr") for number in range(1, 60, 4)]
    change(pool_folder, *map(chat, chats), markup, *several, two(6, 3, 9, task="ocr"))
    change(pool_folder, two(1, 5), file="eval.json")
    settings = on_folder(pool_folder)
    settings += ["strategy=presel", "budget=58", "reference.share=0.2"]
    in_process.succeeds("run", *settings, "pool.text_only=keep")
    run = last_run(pool_folder)

    # Selected and paid for is what has an image; nothing else is in the budget.
    assert len(run.selection) == 60
    assert run.selection["selected"].sum() == 58
    assert run.requested == pytest.approx(58 / 60)
    records = {one.id: one for one in run.records()}
    assert list(records)[-7:] == chats
    assert len(records) == 58 + 7
    assert [one.id for one in records.values() if len(one.images) > 1]
    assert run.stages["model"].manifest["measured"]["samples"] == 65
    assert run.stages["reference_model"].manifest["measured"]["samples"] == 12
    assert run.stages["images"].manifest["measured"]["text_only_left_out"] == 1

    # Who read the text is written down.
    ledger = pd.read_parquet(run.result("text_only") / LEDGER)
    assert ledger["id"].tolist() == chats
    assert set(ledger["stage"]) == {"text only"}

    in_process.succeeds("export", str(run.folder), "--format", "llava", "--out", "out", "--images", "copy")
    exported = read_training_file(pool_folder / "out/train.json")
    assert exported == run.records()
    copied = {file.name for file in (pool_folder / "out/images").iterdir()}
    assert copied == {image for one in exported for image in one.images}

    # The same command without the text trains another final model on what was bought already.
    in_process.succeeds("run", *settings, "pool.text_only=drop_all")
    assert len(last_run(pool_folder).records()) == 58


def test_a_pool_without_text_alone_has_nothing_to_keep(in_process: Program, pool_folder: Path) -> None:
    settings = [*on_folder(pool_folder), "strategy=random", "budget=4", "until=instructions"]
    in_process.succeeds("run", *settings, "pool.text_only=keep")
    run = last_run(pool_folder)
    assert [one.id for one in run.records()] == run.chosen["id"].tolist()
    assert run.paths["instructions"] == run.stages["training_set"].folder / "train.json"


def test_a_folder_of_images_has_no_text_to_keep(in_process: Program, pool_folder: Path) -> None:
    said = in_process.refuses("run", "pool=image_folder", "pool.images=images", "pool.text_only=keep")
    assert "pool.text_only" in said


def test_the_doctor_tells_what_is_kept_and_which_image_is_broken(
    in_process: Program, pool_folder: Path
) -> None:
    (pool_folder / "images/0050.png").write_bytes(b"no image")
    change(pool_folder, *map(chat, "abc"), two(3, 10), two(5, 50), two(7, 50), record(50, image="0010.png"))
    result = in_process(
        "doctor", *on_folder(pool_folder), "pool.text_only=keep", "budget=10", "--json", "found.json"
    )
    assert "3 records without an image are kept in the training set" in result.stdout
    found = json.loads((pool_folder / "found.json").read_text())
    assert (found["records"], found["text_only"], found["text_only_kept"]) == (60, 0, 3)
    assert sum(task["images"] for task in found["tasks"].values()) == 58
    assert sum(task["unusable"] for task in found["tasks"].values()) == 2
    broken = [one for one in found["findings"] if one["images"] == ["0050.png"]]
    assert [one["ids"] for one in broken] == [["0005"], ["0007"]]
    assert found["instructions"]["images"] == 10

"""Uncertainty of the reference model: the entropy of its answers, to questions that are bought already."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from presel.component import component
from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.instructions.annotations import Annotations
from presel.instructions.ledger import requested_ids
from presel.models.conversations import ConversationEncoder, Example
from presel.models.decoding import first_token_entropies, prompt_batch
from presel.models.lvlm import Lvlm
from presel.pipeline import Pipeline
from presel.stages.instructions import InstructionsStage
from presel.stages.pool import PoolStage
from presel.stages.reference import ReferenceStage
from presel.stages.tuning import TuningStage
from presel.stages.uncertainty import Probe, UncertaintyStage
from presel.storage.shards import TableShards
from presel.storage.stage import Stage
from presel.storage.store import Store
from presel.strategies.base import SelectionContext
from presel.strategies.random import Random
from tests.families import FAMILIES, save_family
from tests.helpers import Program, last_run, on_folder, read_records
from tests.training import CPU, LVLM, settings


@component
class Unsure(Random):
    """Chooses what the model is least sure of."""

    def stages(self, pipeline: Pipeline) -> dict[str, Stage[Any]]:
        return {"unsure": pipeline.uncertainty_by(questions=2)}

    def select(self, context: SelectionContext) -> pd.DataFrame:
        return context["unsure"].nlargest(context.budget - 12, "uncertainty")


def stage(pool: PoolStage, seed: int = 0, questions: int = 2, lvlm: Lvlm = LVLM) -> UncertaintyStage:
    reference = ReferenceStage(pool=pool, share=0.2, seed=0)
    bought = InstructionsStage(pool=pool, chosen=reference, provider=Annotations(), purpose="reference")
    runtime = Runtime(hardware=CPU)
    model = TuningStage(instructions=bought, lvlm=lvlm, tune=settings(), seed=0, runtime=runtime)
    return UncertaintyStage(instructions=bought, model=model, questions=questions, seed=seed, runtime=runtime)


def test_entropies_are_those_of_the_plain_model_one_by_one(in_process: Program, pool_folder: Path) -> None:
    unsure = ("strategy=random", "strategy._target_=tests.test_uncertainty.Unsure", "until=selection")
    run = (*on_folder(pool_folder), *unsure, "reference.share=0.2", "budget=0.5")
    planned = json.loads(in_process("doctor", *run, "--json", "-").stdout)["stages"]
    assert {stage["stage"]: stage["images"] for stage in planned}["uncertainty"] == 48
    in_process.succeeds("run", *run)
    stages = last_run(pool_folder).stages
    table = pd.read_parquet(stages["unsure"].folder / "uncertainty.parquet").set_index("id")["uncertainty"]
    reference = {
        record.id: record for record in read_records(stages["reference_instructions"].folder / "train.json")
    }
    assert len(reference) == 12 and len(table) == 48
    assert not set(table.index) & set(reference)

    model = LVLM.load_model(stages["reference_model"].folder / "adapter")
    encoder = ConversationEncoder(LVLM)
    for name in table.index[:6]:
        task = "vqa" if int(name) % 3 else "ocr"
        entropies = []
        for record in reference.values():
            if record.task == task:
                example = Example([pool_folder / "images" / f"{name}.png"], record.conversations[:1])
                with torch.inference_mode():
                    logits = model(**encoder.batch([example])).logits[0, -1]
                entropies.append(float(torch.distributions.Categorical(logits=logits).entropy()))
        # Some pair of the task's questions.
        pairs = [(one + other) / 2 for one in entropies for other in entropies if one != other]
        assert min(abs(np.array(pairs) - table[name])) < 1e-5


def test_padding_changes_no_entropy(pool_folder: Path) -> None:
    encoder, model = ConversationEncoder(LVLM), LVLM.load_model()
    examples = [
        Example(
            [pool_folder / "images" / f"{number:04}.png"],
            [{"from": "human", "value": "<image>\n" + "Is it red? " * number}],
        )
        for number in range(1, 5)
    ]
    together = first_token_entropies(model, prompt_batch(encoder, examples))
    for example, entropy in zip(examples, together, strict=True):
        alone = first_token_entropies(model, prompt_batch(encoder, [example]))
        assert float(alone) == pytest.approx(float(entropy), abs=1e-5)
    assert len(set(together.tolist())) == 4


def test_images_are_asked_questions_of_their_own_task_in_any_order_of_rows(
    store: Store, pool: PoolStage, pool_folder: Path
) -> None:
    encoder = ConversationEncoder(LVLM)

    def probes(**changes: int) -> list[Probe]:
        return stage(PoolStage(source=pool.source, workers=0), **changes).probes(store, encoder)[0]

    asked = probes()
    assert len(asked) == len({(one.id, one.question) for one in asked}) == 96
    bought = stage(pool).instructions
    own = {task: set() for task in ("vqa", "ocr")}
    for record in store.load(bought):
        own[record.task].add(record.conversations[0]["value"])
    tasks = store.load(pool).set_index("id")["task"]
    assert all(one.question in own[tasks[one.id]] for one in asked)
    assert not {one.id for one in asked} & requested_ids(store, bought)
    assert probes(seed=1) != asked
    # There are four questions of one task and eight of the other.
    assert len(probes(questions=50)) == 16 * 4 + 32 * 8
    records = json.loads((pool_folder / "pool.json").read_text())
    (pool_folder / "pool.json").write_text(json.dumps(records[::-1]))
    assert probes() == asked


def test_questions_without_room_are_left_out(store: Store, pool: PoolStage, pool_folder: Path) -> None:
    records = json.loads((pool_folder / "pool.json").read_text())
    for record in records[::3]:
        record["conversations"][0]["value"] += " and why" * 200
    (pool_folder / "pool.json").write_text(json.dumps(records))
    changed = PoolStage(source=pool.source, workers=0)
    encoder = ConversationEncoder(LVLM)
    # All of ocr's, whose images are asked those of vqa instead.
    assert {len(probe.question) < 200 for probe in stage(changed).probes(store, encoder)[0]} == {True}
    short = Lvlm(path="builtin:digit_llava", template="plain", max_length=20)
    with pytest.raises(
        PreselError, match=r"all questions .* longer than lvlm\.max_length=20 tokens; raise it"
    ):
        stage(changed, lvlm=short).probes(store, ConversationEncoder(short))


def test_questions_without_room_beside_their_own_image_are_left_out_and_counted(
    store: Store, pool: PoolStage, pool_folder: Path, tmp_path: Path
) -> None:
    lvlm = save_family(FAMILIES["qwen2_5_vl"], tmp_path / "model")
    encoder = ConversationEncoder(lvlm)
    every, none = stage(pool, lvlm=lvlm).probes(store, encoder)
    large = {one.id for one in every[::3]}
    for name in large:
        Image.new("RGB", (400, 400)).save(pool_folder / "images" / f"{name}.png")
    lvlm = replace(lvlm, max_length=max(one.length for one in every))
    changed = PoolStage(source=pool.source, workers=0)
    probes, left_out = stage(changed, lvlm=lvlm).probes(store, ConversationEncoder(lvlm))
    assert none == 0
    assert left_out == sum(one.id in large for one in every)
    assert probes == [one for one in every if one.id not in large]
    images = pool_folder / "images"
    turns = [[{"from": "human", "value": one.question}] for one in probes]
    asked = [Example([images / one.images[0]], turn) for one, turn in zip(probes, turns, strict=True)]
    batch = prompt_batch(ConversationEncoder(lvlm), asked)
    assert batch["attention_mask"].sum(dim=1).tolist() == [one.length for one in probes]


def test_an_entropy_that_is_no_number_is_refused(store: Store, pool: PoolStage, tmp_path: Path) -> None:
    shards = TableShards(
        folder=tmp_path,
        items=range(3),
        label="",
        to_batches=lambda rows: [rows],
        compute_batches=lambda _: iter([]),
    )
    shards.write(shards.files[0], [pd.DataFrame({"id": ["a", "b", "b"], "uncertainty": [1.0, 2.0, np.nan]})])
    with pytest.raises(PreselError, match=r"image 'b': the entropy .* is not a number \(1 of 3 answers\)"):
        stage(pool).join(store, tmp_path, shards)

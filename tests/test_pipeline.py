"""The real command line, end to end, on small pools."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from presel.evaluation.metrics import cider
from presel.models.lvlm import Lvlm
from presel.storage.integrity import MANIFEST
from tests.helpers import (
    OWN_STORE,
    TINY,
    InSubprocess,
    Program,
    command,
    environment,
    last_run,
    on_folder,
    read_records,
    stage_files,
    stage_lines,
    summary,
)

STAGES = [
    "scenes",
    "pool",
    "reference",
    "instructions",
    "model",
    "relevance",
    "features",
    "clusters",
    "centrality",
    "selection",
    "evaluation",
]


@pytest.mark.slow
def test_the_quickstart_compares_strategies_and_then_reuses_everything(
    program: Program, in_process: Program, tmp_path: Path
) -> None:
    first = program.succeeds("run", "experiment=quickstart", *TINY, OWN_STORE)
    table = summary(tmp_path)
    assert list(table.index) == ["base", "most frequent", "random", "presel", "full"]
    assert table.loc[["random", "presel", "full"], "requested"].tolist() == [0.15, 0.15, 1.0]
    full = table.loc["full"]
    assert pd.isna(full["relative"]) or full["relative"] == 1
    assert "requested %" in first.stdout
    assert "summary.csv" in first.stdout

    second = in_process.succeeds("run", "experiment=quickstart", *TINY, OWN_STORE)
    assert set(stage_lines(second.stdout).values()) == {"reused"}
    pd.testing.assert_frame_equal(summary(tmp_path), table)

    # What is left out of a store is computed again, also where only its time is asked for.
    shutil.rmtree(tmp_path / "outputs/store/reference")
    other_tau = in_process.succeeds("run", "tau.value=0.01", *TINY, OWN_STORE)
    computed = {label for label, how in stage_lines(other_tau.stdout).items() if how == "computed"}
    assert computed == {
        "reference",
        "selection (presel)",
        "instructions (selection)",
        "model (selection)",
        "evaluation (presel)",
    }


def test_a_sweep_shares_stages_and_ends_with_one_table(in_process: Program, tmp_path: Path) -> None:
    result = in_process.succeeds("run", "-m", "strategy=presel,random", "seed=1,2", *TINY, OWN_STORE)
    assert list(summary(tmp_path).index)[2:] == [
        "presel seed=1",
        "presel seed=2",
        "random seed=1",
        "random seed=2",
    ]
    for stage, times in {
        "features": 1,
        "clusters": 1,
        "most_frequent": 1,
        "relevance": 2,
        "selection": 4,
    }.items():
        assert len(list(tmp_path.glob(f"outputs/store/{stage}/*/{MANIFEST}"))) == times
    assert result.stdout.count("Scores (%)") == 1


def test_neither_workers_nor_a_fresh_store_change_the_selection(in_process: Program, tmp_path: Path) -> None:
    results = []
    for changes in ([], ["executor.workers=2", OWN_STORE]):
        in_process.succeeds("run", *TINY, "until=selection", *changes)
        results.append(last_run(tmp_path).stages["selection"].folder)
    assert results[0].name == results[1].name
    assert results[0] != results[1]
    pd.testing.assert_frame_equal(*(pd.read_parquet(one / "selection.parquet") for one in results))


def test_a_pool_of_ones_own_ends_with_a_training_file_and_scores(
    in_process: Program, pool_folder: Path
) -> None:
    in_process.succeeds("run", *on_folder(pool_folder), "budget=12")
    training_file = last_run(pool_folder).stages["instructions"].folder / "train.json"
    records = read_records(training_file)
    originals = {record.id: record for record in read_records(pool_folder / "pool.json")}
    assert len(records) == 12
    assert all(originals[record.id] == record for record in records)
    table = pd.read_parquet(last_run(pool_folder).stages["selection"].folder / "selection.parquet")
    assert len(table) == 60
    assert set(table.loc[table["selected"], "id"]) == {record.id for record in records}
    assert table.loc[table["selected"], "why"].value_counts().to_dict() == {"central": 9, "reference": 3}
    assert {"base", "most frequent", "presel"} == set(summary(pool_folder).index)
    report = json.loads(next(pool_folder.glob("outputs/runs/*/*/run.json")).read_text())
    assert report["versions"]["torch"]
    assert next(pool_folder.glob("outputs/runs/*/*/.hydra/config.yaml")).exists()


def test_broken_images_are_listed_and_put_up_with_up_to_a_share(
    in_process: Program, pool_folder: Path
) -> None:
    (pool_folder / "images" / "0007.png").write_bytes(b"no image")
    overrides = [*on_folder(pool_folder), "strategy=random"]
    refused = in_process.refuses("run", *overrides, "until=selection")
    assert "1 of 60 images are unusable, more than max_rejected_share=0.01 allows" in refused
    assert "0007.png" in refused
    in_process.succeeds("run", *overrides, "until=selection", "pool.max_rejected_share=0.1")
    # The benchmarks hold the same image, and a benchmark with holes is another benchmark.
    refused = in_process.refuses("run", *overrides, "pool.max_rejected_share=0.1")
    assert "evaluation.max_rejected_share" in refused
    rejected = pd.concat(
        pd.read_parquet(file) for file in stage_files(pool_folder, "pool", "rejected.parquet")
    )
    assert set(rejected["id"]) == {"0007"}


def test_copies_are_encoded_once_and_a_strategy_of_all_ignores_the_budget(
    in_process: Program, pool_folder: Path
) -> None:
    for number in (11, 12):
        shutil.copy(pool_folder / "images" / "0010.png", pool_folder / "images" / f"00{number}.png")
    for budget in (6, 12):
        in_process.succeeds("run", *on_folder(pool_folder), "until=selection", f"budget={budget}")
    (folder,) = {path.parent for path in stage_files(pool_folder, "features", MANIFEST)}
    assert json.loads((folder / MANIFEST).read_text())["measured"]["different_images"] == 58
    features = dict(
        zip(pd.read_parquet(folder / "ids.parquet")["id"], np.load(folder / "features.npy"), strict=True)
    )
    assert len(features) == 60
    assert (features["0010"] == features["0011"]).all()
    assert not (features["0010"] == features["0013"]).all()
    for budget in (6, 12):
        arguments = (*on_folder(pool_folder), "until=selection", "strategy=full", f"budget={budget}")
        result = in_process("run", *arguments, OWN_STORE)
        assert stage_lines(result.stdout)["selection (full)"] == ("computed" if budget == 6 else "reused")


@torch.no_grad()
def test_the_merged_model_is_the_base_with_its_adapter(in_process: Program, tmp_path: Path) -> None:
    result = in_process.succeeds("run", "strategy=random", "until=merged", *TINY)
    folder = last_run(tmp_path).stages["merged"].folder / "model"
    assert str(folder) in result.stdout
    adapter = last_run(tmp_path).stages["model"].folder / "adapter"
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    assert plain.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    picture = next(last_run(tmp_path).stages["images.scenes"].folder.glob("images/count/**/*.png"))
    inputs = processor(
        images=Image.open(picture), text="USER: <image>\nHow many? ASSISTANT:", return_tensors="pt"
    )
    lvlm = Lvlm(path="builtin:digit_llava", template="plain")
    ours = lvlm.load_model(adapter)(**inputs).logits
    torch.testing.assert_close(plain(**inputs).logits, ours, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(lvlm.load_model()(**inputs).logits, ours, atol=1e-2)


def test_another_metric_is_another_evaluation(in_process: Program, pool_folder: Path) -> None:
    for metric in ("exact_match", "cider"):
        own = (*on_folder(pool_folder), "strategy=random", f"evaluation.metric={metric}", OWN_STORE)
        result = in_process.succeeds("run", *own)
        lines = stage_lines(result.stdout)
        assert lines["evaluation (random)"] == lines["most_frequent"] == "computed"
    assert lines["benchmarks"] == lines["model (selection)"] == "reused"


def test_benchmarks_are_sampled_and_scored_by_all_their_references(
    in_process: Program, pool_folder: Path
) -> None:
    records = json.loads((pool_folder / "eval.json").read_text())
    several = [entry | {"references": ["a red cat", f"number {entry['id']}"]} for entry in records]
    (pool_folder / "eval.json").write_text(json.dumps(several))
    cider_of_2 = ("evaluation.metric=cider", "evaluation.limit_per_task=2")
    in_process.succeeds("run", *on_folder(pool_folder), "strategy=random", *cider_of_2)
    found = pd.read_parquet(last_run(pool_folder).paths["evaluation"])
    assert found["benchmark"].value_counts().to_dict() == {"ocr": 2, "vqa": 2}
    for _, rows in found.groupby("benchmark"):
        assert rows["references"].map(list).tolist() == [["a red cat", f"number {one}"] for one in rows["id"]]
        assert rows["score"].tolist() == cider(rows["answer"].tolist(), rows["references"].tolist()).tolist()


@pytest.mark.slow
def test_kill_9_in_every_stage_changes_nothing(
    in_process: Program, tmp_path: Path, shared_store: Path
) -> None:
    """Each attempt is killed once the next stage has begun; the last one ends like an undisturbed run."""
    whole, cut = tmp_path, tmp_path / "cut"
    cut.mkdir()
    in_process.succeeds("run", *TINY, "tune.checkpoint_steps=1")
    overrides = [*TINY, "tune.checkpoint_steps=1", OWN_STORE]
    killed = [stage for stage in STAGES if _killed_in(stage, cut, overrides)]
    # A stage of milliseconds may be over before the signal arrives; the long ones must not be.
    assert {"model", "evaluation"} <= set(killed)
    InSubprocess(cut, shared_store).succeeds("run", *overrides)
    pd.testing.assert_frame_equal(
        summary(cut).drop(columns="seconds"), summary(whole).drop(columns="seconds")
    )
    for stage, name in (
        ("selection", "selection.parquet"),
        ("relevance", "relevance.parquet"),
        ("features", "features.npy"),
        ("model", "adapter/adapter_model.safetensors"),
    ):
        ours, theirs = stage_files(cut, stage, name), stage_files(whole, stage, name)
        assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


def _killed_in(stage: str, folder: Path, overrides: list[str]) -> bool:
    """Starts a run, kills it as soon as `stage` has begun, and says whether it was unfinished then.

    Where the kill before came so late that `stage` was over by then, a later stage's beginning counts; one
    that was cut off before has begun again once it writes a file.
    """
    store = folder / "outputs" / "store"
    watched = STAGES[STAGES.index(stage) :]

    def results() -> set[Path]:
        return {path for name in watched for path in store.glob(f"{name}/*") if path.is_dir()}

    finished = {path for path in results() if (path / MANIFEST).exists()}
    started = time.time()
    run = subprocess.Popen(
        command("run", *overrides),
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while run.poll() is None:
        for begun in results() - finished:
            if any(_changed_since(started, path) for path in begun.rglob("*")):
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
                return begun.parent.name == stage and not (begun / MANIFEST).exists()
        time.sleep(0.005)
    return False


def _changed_since(moment: float, path: Path) -> bool:
    """Whether this is a file, written since; one under a temporary name may be gone by now."""
    try:
        return path.is_file() and path.stat().st_mtime >= moment
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_kill_9_between_two_shards_loses_no_shard(in_process: Program, tmp_path: Path) -> None:
    """Scores and features go on at the next shard, and come out as without the kill."""
    # More than a shard of reference samples, and of different images.
    overrides = [*TINY, "pool.size=1100", "reference.share=0.6", "budget=0.7", "until=selection", OWN_STORE]
    in_process.succeeds("run", *overrides)
    for stage, part, whole, resting in (
        ("relevance", "part-{:05}.parquet", "relevance.parquet", ["selection"]),
        ("features", "part-{:05}.npy", "features.npy", ["clusters", "centrality", "selection"]),
    ):
        (file,) = stage_files(tmp_path, stage, whole)
        undisturbed = file.read_bytes()
        # With what rests on it, without which nobody would ask for it.
        for gone in [stage, *resting]:
            shutil.rmtree(tmp_path / "outputs" / "store" / gone)
        first, second = (file.parent / "shards" / part.format(number) for number in range(2))
        run = subprocess.Popen(
            command("run", *overrides), cwd=tmp_path, env=environment(), start_new_session=True
        )
        while not first.exists():
            assert run.poll() is None
            time.sleep(0.002)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert not second.exists()
        kept = first.stat().st_mtime_ns
        in_process.succeeds("run", *overrides)
        assert second.stat().st_mtime_ns > first.stat().st_mtime_ns == kept
        assert file.read_bytes() == undisturbed


def test_presel_spends_the_budget_exactly(in_process: Program, tmp_path: Path) -> None:
    # All three share the reference model and the features.
    in_process.succeeds("run", "-m", *TINY, "until=selection", "budget=0.1,0.15,40")
    tables = [pd.read_parquet(file) for file in stage_files(tmp_path, "selection", "selection.parquet")]
    assert sorted(table["selected"].sum() for table in tables) == [20, 30, 40]
    for table in tables:
        # In each cluster the chosen ones are the most central.
        for _, cluster in table[table["why"] != "reference"].groupby(["task", "cluster"]):
            best = np.sort(cluster["centrality"])[::-1][: cluster["selected"].sum()]
            assert np.allclose(np.sort(cluster.loc[cluster["selected"], "centrality"])[::-1], best)
        chosen = (table["why"] == "central").sum()
        assert chosen == table["selected"].sum() - (table["why"] == "reference").sum()

"""Batches, labels, losses and the tuner, on the built-in model."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from pytorch_lightning.loggers import CSVLogger, Logger

from presel.data.llava import Record, TaskRule, read_records
from presel.errors import PreselError
from presel.models.batching import BatchPlan, plan_batches
from presel.models.conversations import IGNORED, ConversationEncoder, Example
from presel.models.generation import generate_answers, prompt_batch
from presel.models.loggers import Csv
from presel.models.lvlm import Lvlm
from presel.models.tune import Hardware, Tune
from presel.models.tuner import add_lora, cosine_with_warmup, tune

LVLM = Lvlm(path="builtin:digit_llava", template="plain", max_length=256)
CPU = Hardware(accelerator="cpu")


def settings(**changes: object) -> Tune:
    plain = {"lr": 1e-3, "projector_lr": 1e-4, "batch_size": 4, "micro_batch_size": 2, "lora_rank": 4}
    return Tune(**(plain | {"lora_alpha": 8, "checkpoint_steps": 2} | changes))


@pytest.fixture(scope="module")
def encoder() -> ConversationEncoder:
    return ConversationEncoder(LVLM)


@pytest.fixture
def records(pool_folder: Path) -> list[Record]:
    return read_records(pool_folder / "pool.json", TaskRule())[:24]


def examples(records: list[Record], folder: Path) -> list[Example]:
    return [Example(folder / "images" / record.image, record.conversations) for record in records]


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=400),
    st.integers(1, 40),
    st.integers(0, 5),
    st.booleans(),
)
def test_every_sample_is_in_one_batch(lengths: list[int], size: int, seed: int, by_length: bool) -> None:
    batches = plan_batches(lengths, size, seed, by_length)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size
    assert len(batches) == math.ceil(len(lengths) / size)
    assert batches == plan_batches(lengths, size, seed, by_length)
    if by_length:
        assert max(lengths[row] for row in batches[0]) == max(lengths)


def test_grouping_by_length_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 3000).tolist()

    def padded(by_length: bool) -> int:
        plan = plan_batches(lengths, 16, 0, by_length)
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in plan)

    assert padded(True) < 1.1 * sum(lengths) < padded(False)


def test_a_plan_goes_on_after_the_batches_that_are_done() -> None:
    epochs = [[[0], [1], [2]], [[2], [0], [1]]]
    resumed = BatchPlan(epochs, done=4)
    # A data loader with workers asks twice.
    assert list(resumed) == list(resumed) == [[0], [1]]
    assert len(resumed) == 3
    whole = BatchPlan(epochs)
    assert list(whole) == epochs[0]
    whole.set_epoch(1)
    assert list(whole) == epochs[1]


def test_labels_stand_on_the_responses_and_their_ends_alone(encoder: ConversationEncoder) -> None:
    turns = [
        {"from": "human", "value": "<image>\nHow many?"},
        {"from": "gpt", "value": "There are 12."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "yes"},
    ]
    ids, labels, truncated = encoder.tokens(turns)
    assert not truncated
    supervised = [label for label in labels if label != IGNORED]
    assert encoder.tokenizer.decode(supervised).replace(" ", "") == "Thereare12.</s>yes</s>"
    assert [token for token, label in zip(ids, labels, strict=True) if label != IGNORED] == supervised


def test_answers_do_not_depend_on_the_batch(
    encoder: ConversationEncoder, records: list[Record], pool_folder: Path
) -> None:
    model = LVLM.load_model()
    questions = [
        Example(pool_folder / "images" / record.image, [*record.conversations[:1]]) for record in records[:6]
    ]

    def answers(asked: list[Example]) -> list[str]:
        return generate_answers(model, encoder, prompt_batch(encoder, asked), 12)

    assert answers(questions) == [answers([question])[0] for question in questions]


def test_lora_sits_on_the_language_model_and_the_projector_trains_in_full() -> None:
    model = add_lora(LVLM.load_model(), LVLM, settings())
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("language_model" in name or "multi_modal_projector" in name for name in trained)
    assert any("multi_modal_projector" in name and "lora" not in name for name in trained)
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in trained if "lora_" in name}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    factors = [cosine_with_warmup(step, 10, 100) for step in range(101)]
    assert factors[0] == 0
    assert max(factors) == factors[10] == 1
    assert factors[100] == pytest.approx(0)
    assert factors[10:] == sorted(factors[10:], reverse=True)


class PowerCut(CSVLogger):
    """A logger that fails at a step, as a disk or a machine may."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder, name="", version="")
        self._last = step

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        if step is not None and step >= self._last:
            raise ConnectionError


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_tuning_ends_like_an_uninterrupted_one(
    records: list[Record], pool_folder: Path, workers: int
) -> None:
    # 24 samples, 2 a batch, 2 batches a step: 6 steps an epoch. The cuts fall into the second epoch and into
    # the third, behind a step whose checkpoint is yet to come and behind one that has one.
    recipe = settings(epochs=4, lora_dropout=0.1)

    def run(name: str, logger: Logger) -> bytes:
        folder = pool_folder / name
        tune(LVLM, recipe, CPU, records, pool_folder / "images", folder, 3, workers, logger)
        return (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    whole = run("whole", Csv().create(pool_folder / "whole", "whole"))
    for step in (8, 15):
        with pytest.raises(ConnectionError):
            run("cut", PowerCut(pool_folder / "cut", step))
        assert list((pool_folder / "cut" / "checkpoints" / "single-1").glob("step=*.ckpt"))
    assert run("cut", Csv().create(pool_folder / "cut", "cut")) == whole


def test_a_tuning_cut_off_after_its_last_step_goes_on(
    records: list[Record], pool_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> bytes:
        folder = pool_folder / name
        logger = Csv().create(folder, name)
        tune(LVLM, settings(epochs=2), CPU, records, pool_folder / "images", folder, 3, 0, logger)
        return (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    whole = run("whole")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk"):

        def fail(*_: object, **__: object) -> None:
            raise OSError("the disk is full")

        patch.setattr(PeftModel, "save_pretrained", fail)
        run("cut")
    assert run("cut") == whole


def test_the_projector_is_trained_in_full_precision() -> None:
    model = add_lora(replace(LVLM, dtype="bfloat16").load_model(), LVLM, settings())
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}


def test_a_single_step_trains_and_half_precision_weights_do_too(
    records: list[Record], pool_folder: Path
) -> None:
    lvlm, folder = replace(LVLM, dtype="bfloat16"), pool_folder / "short"
    logger = Csv().create(folder, "short")
    tune(lvlm, settings(), CPU, records[:4], pool_folder / "images", folder, 0, 0, logger)
    base, tuned = lvlm.load_model(), dict(lvlm.load_model(folder / "adapter").named_parameters())
    assert any(not torch.equal(weight, tuned[name]) for name, weight in base.named_parameters())


def test_throughput_is_measured(records: list[Record], pool_folder: Path) -> None:
    folder = pool_folder / "measured"
    logger = Csv().create(folder, "measured")
    measured = tune(LVLM, settings(), CPU, records, pool_folder / "images", folder, 0, 0, logger)
    assert measured["samples_per_second"] > 0
    assert measured["response_tokens_per_second"] > measured["samples_per_second"]
    assert measured["utilisation"] is None
    assert len(pd.read_csv(folder / "metrics" / "version_0" / "metrics.csv")) >= 1


def test_a_tuned_adapter_changes_the_model_and_loads_merged(records: list[Record], pool_folder: Path) -> None:
    folder = pool_folder / "tuned"
    logger = Csv().create(folder, "tuned")
    measured = tune(LVLM, settings(), CPU, records, pool_folder / "images", folder, 0, 0, logger)
    assert measured["steps"] == 6
    assert not (folder / "checkpoints").exists()
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4
    base, tuned = LVLM.load_model(), LVLM.load_model(folder / "adapter")
    weights = dict(tuned.named_parameters())
    changed = {name for name, weight in base.named_parameters() if not torch.equal(weight, weights[name])}
    assert changed
    assert not any("vision_tower" in name or "embed_tokens" in name for name in changed)


def test_a_response_beyond_the_maximal_length_is_named(records: list[Record], pool_folder: Path) -> None:
    short = Lvlm(path=LVLM.path, template="plain", max_length=30)
    logger = Csv().create(pool_folder, "x")
    with pytest.raises(
        PreselError, match="record '0000': none of its responses lies within the first 30 tokens"
    ):
        tune(short, settings(), CPU, records, pool_folder / "images", pool_folder / "x", 0, 0, logger)

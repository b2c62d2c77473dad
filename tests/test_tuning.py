"""Batches, labels, losses and the tuner, on the built-in model."""

import json
import math
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from pytorch_lightning.loggers import Logger
from safetensors.torch import load_file
from transformers import GenerationConfig

from presel.data.llava import Record, read_training_file
from presel.errors import PreselError
from presel.models.batching import BatchPlan, MicroBatch, Step, plan_epoch
from presel.models.conversations import IGNORED, ConversationEncoder, Example
from presel.models.decoding import generate_answers, prompt_batch
from presel.models.fine_tune import _Batches
from presel.models.hardware import Hardware
from presel.models.losses import token_losses
from presel.models.memory_trial import MemoryTrial, try_micro_batch
from presel.models.tuner import Batch, Tuner, add_lora, cosine_with_warmup
from tests.gradients import first_gradients
from tests.helpers import change, chat, read_records, two
from tests.training import CPU, LVLM, PowerCut, settings, tune


@pytest.fixture(scope="module")
def encoder() -> ConversationEncoder:
    return ConversationEncoder(LVLM)


@pytest.fixture
def records(pool_folder: Path) -> list[Record]:
    return read_records(pool_folder / "pool.json")[:24]


def examples(records: list[Record], folder: Path) -> list[Example]:
    return [Example(record.paths(folder / "images"), record.conversations) for record in records]


@st.composite
def training_sets(draw: st.DrawFn) -> tuple[list[str], list[int], list[int]]:
    ids = draw(st.lists(st.text("abc019", min_size=1, max_size=6), min_size=1, max_size=300, unique=True))
    numbers = np.random.default_rng(draw(st.integers(0, 99))).integers(1, 500, (2, len(ids)))
    return ids, numbers[0].tolist(), numbers[1].tolist()


@given(training_sets(), st.integers(1, 9), st.integers(1, 5), st.integers(0, 5), st.booleans())
def test_every_sample_is_in_one_step(
    samples: tuple[list[str], list[int], list[int]], micro: int, accumulate: int, seed: int, by_length: bool
) -> None:
    ids, lengths, response_tokens = samples
    size = micro * accumulate
    steps = plan_epoch(ids, lengths, response_tokens, size, micro, seed, by_length=by_length)
    assert len(steps) == math.ceil(len(ids) / size)
    taken = [[row for batch in step for row in batch.rows] for step in steps]
    assert sorted(row for rows in taken for row in rows) == list(range(len(ids)))
    assert {len(rows) for rows in taken[:-1]} <= {size}
    for step, rows in zip(steps, taken, strict=True):
        assert {batch.step_tokens for batch in step} == {sum(response_tokens[row] for row in rows)}
        assert {len(batch.rows) for batch in step[:-1]} <= {micro}
        if by_length:
            assert [lengths[row] for row in rows] == sorted((lengths[row] for row in rows), reverse=True)

    # The cut and the lengths decide nothing about a step, nor does the order of the rows.
    def ids_of(steps: list[Step], ids: list[str]) -> list[set[str]]:
        return [{ids[row] for batch in step for row in batch.rows} for step in steps]

    cut = plan_epoch(ids, lengths[::-1], response_tokens, size, size, seed)
    reversed_rows = plan_epoch(ids[::-1], lengths, response_tokens, size, micro, seed)
    assert ids_of(steps, ids) == ids_of(cut, ids) == ids_of(reversed_rows, ids[::-1])


def test_no_epoch_has_the_order_of_another_seed() -> None:
    ids, ones = [f"{row:03}" for row in range(100)], [1] * 100
    orders = [
        [row for (batch,) in plan_epoch(ids, ones, ones, 4, 4, seed, epoch) for row in batch.rows]
        for seed in range(4)
        for epoch in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 12
    assert all(sorted(order) == list(range(100)) for order in orders)


def test_a_step_is_a_random_sample_of_all_lengths() -> None:
    # Ten tasks of one length each: what grouping by length would take apart.
    lengths = [10 * (row % 10 + 1) for row in range(6400)]
    ids = [f"{row:04}" for row in range(len(lengths))]
    steps = plan_epoch(ids, lengths, lengths, 32, 8, seed=0)
    tasks = [len({lengths[row] for batch in step for row in batch.rows}) for step in steps]
    # 10 · (1 − 0.9³²) = 9.66 are expected.
    assert np.mean(tasks) == pytest.approx(9.66, abs=0.1)
    assert min(tasks) >= 7
    means = [np.mean([lengths[row] for batch in step for row in batch.rows]) for step in steps]
    # A mean of 32 draws from 10 … 100 has a standard deviation of 28.7 / √32 = 5.08.
    assert np.std(means) == pytest.approx(5.08, abs=0.6)
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.2


@given(training_sets(), st.integers(1, 9), st.integers(1, 3), st.integers(0, 5), st.randoms())
def test_steps_have_images_or_none(
    samples: tuple[list[str], list[int], list[int]],
    micro: int,
    accumulate: int,
    seed: int,
    random: random.Random,
) -> None:
    ids, lengths, response_tokens = samples
    size = micro * accumulate
    text_only = [random.random() < 0.3 for _ in ids]
    steps = plan_epoch(ids, lengths, response_tokens, size, micro, seed, text_only=text_only)
    taken = [[row for batch in step for row in batch.rows] for step in steps]
    assert sorted(row for rows in taken for row in rows) == list(range(len(ids)))
    assert {len(rows) for rows in taken[:-1]} <= {size}
    # As many steps of each modality alone as LLaVA's sampler makes: the last one of each is left for the end.
    numbers = [text_only.count(modality) for modality in (False, True)]
    alone = [math.ceil(number / size) - 1 for number in numbers]
    if all(numbers):
        kinds = [{text_only[row] for row in rows} for rows in taken[: sum(alone)]]
        assert [kinds.count({False}), kinds.count({True})] == alone
        assert len(taken) - sum(alone) in (1, 2)
    else:
        assert steps == plan_epoch(ids, lengths, response_tokens, size, micro, seed)


def test_steps_of_text_come_at_random_among_those_of_images() -> None:
    ids, ones = [f"{row:04}" for row in range(3200)], [1] * 3200
    text_only = [row < 800 for row in range(3200)]
    steps = plan_epoch(ids, ones, ones, 8, 8, seed=0, text_only=text_only)
    places = [place for place, (batch,) in enumerate(steps) if text_only[batch.rows[0]]]
    assert np.mean(places) == pytest.approx(200, abs=25)


def test_cutting_a_step_by_length_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 3000).tolist()
    ids = list(map(str, range(len(lengths))))

    def padded(by_length: bool) -> int:
        steps = plan_epoch(ids, lengths, lengths, 64, 8, 0, by_length=by_length)
        batches = [[lengths[row] for row in batch.rows] for step in steps for batch in step]
        return sum(len(batch) * max(batch) for batch in batches)

    assert padded(True) < 1.15 * sum(lengths) < 1.5 * sum(lengths) < padded(False)


def test_a_plan_goes_on_after_the_micro_batches_that_are_done() -> None:
    a, b, c = (MicroBatch([row], 1) for row in range(3))
    epochs = [[[a, b], [c]], [[c, a], [b]]]
    resumed = BatchPlan(epochs, done=4)
    # A data loader with workers asks twice.
    assert list(resumed) == list(resumed) == [a, b]
    assert len(resumed) == 3
    whole = BatchPlan(epochs)
    assert list(whole) == [a, b, c]
    whole.set_epoch(1)
    assert list(whole) == [c, a, b]


@pytest.mark.slow
def test_the_gradient_of_a_step_does_not_depend_on_its_micro_batches_or_processes(
    pool_folder: Path, tmp_path: Path
) -> None:
    # Some micro-batches are text alone.
    change(pool_folder, *(chat(f"chat {number}") for number in range(20)), two(3, 10), two(5, 6, 7))
    for micro in (1, 4, 32):
        first_gradients(tmp_path / str(micro), pool_folder, micro, CPU)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*launch, "-m", "tests.gradients", tmp_path / "two", pool_folder],
        check=True,
        cwd=Path(__file__).parents[1],
    )
    one, *others = (load_file(tmp_path / name / "gradients.safetensors") for name in ("1", "4", "32", "two"))
    # LoRA's A has no gradient yet, since B is 0.
    assert sum(bool(gradient.any()) for gradient in one.values()) >= len(one) / 2
    for other in others:
        assert other.keys() == one.keys()
        for name, gradient in one.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def test_the_loss_of_a_step_is_the_mean_over_its_response_tokens(
    encoder: ConversationEncoder, records: list[Record], pool_folder: Path
) -> None:
    folder = pool_folder / "mean"
    recipe = settings(batch_size=24, micro_batch_size=3, lora_dropout=0.0)
    tune(records, folder, recipe, seed=3)
    (logged,) = pd.read_csv(folder / "metrics" / "version_0" / "metrics.csv")["train/loss"]
    batch = encoder.batch(examples(records, pool_folder))
    # The adapter starts as the identity, so the first step's loss is the base model's.
    assert logged == pytest.approx(float(LVLM.load_model()(**batch).loss), abs=1e-5)


def test_losses_of_text_and_of_several_images_do_not_depend_on_the_batch(
    encoder: ConversationEncoder, pool_folder: Path
) -> None:
    change(pool_folder, two(3, 10), two(5, 6, 7), chat("a"), chat("b" * 30))
    mixed = examples(read_training_file(pool_folder / "pool.json")[:10], pool_folder)
    assert {len(example.images) for example in mixed} == {0, 1, 2, 3}
    model = LVLM.load_model().eval()

    def mean_losses(chosen: list[Example]) -> list[float]:
        batch = encoder.batch(chosen)
        counts = (batch["labels"] != IGNORED).sum(dim=1)
        with torch.inference_mode():
            return (token_losses(model, **batch).sum(dim=1) / counts).tolist()

    together = mean_losses(mixed)
    assert together == pytest.approx([mean_losses([one])[0] for one in mixed], abs=1e-5)
    # Every image is read, at its place.
    turned = [replace(one, images=one.images[::-1]) for one in mixed]
    several = [place for place, one in enumerate(mixed) if len(one.images) > 1]
    changed = mean_losses(turned)
    assert all(abs(changed[place] - together[place]) > 1e-5 for place in several)


def test_a_micro_batch_of_text_alone_trains_as_any_other(pool_folder: Path) -> None:
    change(pool_folder, *(chat(f"chat {number}") for number in range(6)))
    mixed = read_training_file(pool_folder / "pool.json")[:8]
    losses = []
    for micro in (1, 8):
        folder = pool_folder / f"micro {micro}"
        tune(mixed, folder, settings(batch_size=8, micro_batch_size=micro, lora_dropout=0.0))
        losses.append(pd.read_csv(folder / "metrics" / "version_0" / "metrics.csv")["train/loss"].tolist())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_micro_batch_of_text_alone_gets_the_shortest_sample_with_an_image(
    encoder: ConversationEncoder, records: list[Record], pool_folder: Path
) -> None:
    long, short, text = *examples(records[:2], pool_folder), Example([], chat("a")["conversations"])
    long = replace(long, conversations=[{**long.conversations[0]}, {"from": "gpt", "value": "red " * 30}])
    samples = [long, text, short]
    lengths = [len(encoder.tokens(one.conversations, images=one.images).ids) for one in samples]
    assert lengths[1] < lengths[2] < lengths[0]
    batches = _Batches(encoder, samples, lengths)
    for rows, encoded in (([1], 2), ([1, 1, 1], 4), ([1, 0], 2), ([0], 1), ([], 1)):
        planned = MicroBatch(rows, step_tokens=9)
        batch = batches[planned]
        assert len(batch["input_ids"]) == encoded
        assert batches.tokens(planned) == batch["input_ids"].numel()
    batch = batches[MicroBatch([1], step_tokens=9)]
    assert (batch["labels"][1] == IGNORED).all() and batch["input_ids"].shape[1] == lengths[2]

    class Weighted(Tuner):
        def weighted(self, losses: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            seen.append((len(losses), len(rows)))
            return losses

    seen: list[tuple[int, int]] = []
    tuner = Weighted(add_lora(LVLM.load_model(), LVLM, settings()), settings(), steps=1, seed=0)
    tuner.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    for rows in ([1], []):
        loss = tuner.training_step(batches[MicroBatch(rows, step_tokens=9)], 0)
        loss.backward()
        assert bool(loss) == bool(rows)
    assert seen == [(1, 1), (0, 0)]
    # The projector takes part in both, as in other processes.
    assert all(weight.grad is not None for weight in tuner.parameter_groups()[1]["params"])


def test_a_memory_trial_leaves_no_trace(
    encoder: ConversationEncoder, records: list[Record], pool_folder: Path
) -> None:
    recipe = settings(lora_dropout=0.1)
    tuner = Tuner(add_lora(LVLM.load_model(), LVLM, recipe), recipe, steps=6, seed=0)
    tuner.train()
    tuner.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    weights = {name: weight.clone() for name, weight in tuner.named_parameters()}
    batch = encoder.batch(examples(records, pool_folder))
    extra = {"rows": torch.arange(len(records)), "step_tokens": torch.tensor(100)}
    torch.manual_seed(5)
    try_micro_batch(tuner, batch | extra, torch.device("cpu"))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    assert all(weight.grad is None for weight in tuner.parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in tuner.named_parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu_ends_the_same_with_a_memory_trial(
    records: list[Record], pool_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> bytes:
        folder = pool_folder / name
        recipe = settings(lora_dropout=0.1)
        tune(records, folder, recipe, hardware=Hardware(accelerator="gpu"), seed=3)
        return (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    tried = run("tried")
    monkeypatch.setattr(MemoryTrial, "on_train_start", lambda *_: None)
    assert run("plain") == tried


def test_labels_stand_on_the_responses_and_their_ends_alone(encoder: ConversationEncoder) -> None:
    turns = [
        {"from": "human", "value": "<image>\nHow many?"},
        {"from": "gpt", "value": "There are 12."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "yes"},
    ]
    ids, labels, length, _ = encoder.tokens(turns)
    assert length == len(ids)
    supervised = [label for label in labels if label != IGNORED]
    assert encoder.tokenizer.decode(supervised).replace(" ", "") == "Thereare12.</s>yes</s>"
    assert [token for token, label in zip(ids, labels, strict=True) if label != IGNORED] == supervised


def test_answers_do_not_depend_on_the_batch(
    encoder: ConversationEncoder, records: list[Record], pool_folder: Path
) -> None:
    model = LVLM.load_model()
    questions = [
        Example(record.paths(pool_folder / "images"), [*record.conversations[:1]]) for record in records[:6]
    ]

    def answers(asked: list[Example]) -> list[str]:
        return generate_answers(model, encoder, prompt_batch(encoder, asked), 12)

    assert answers(questions) == [answers([question])[0] for question in questions]


def test_a_models_own_settings_of_generation_do_not_apply(
    encoder: ConversationEncoder, records: list[Record], pool_folder: Path
) -> None:
    model = LVLM.load_model()
    asked = [
        Example(record.paths(pool_folder / "images"), record.conversations[:1]) for record in records[:3]
    ]
    batch = prompt_batch(encoder, asked)
    greedy = generate_answers(model, encoder, batch, 12)
    model.generation_config = GenerationConfig(
        repetition_penalty=3.0, no_repeat_ngram_size=1, min_new_tokens=12, do_sample=True
    )
    assert generate_answers(model, encoder, batch, 12) == greedy


def test_lora_sits_on_the_language_model_and_the_projector_trains_in_full() -> None:
    model = add_lora(LVLM.load_model(), LVLM, settings())
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("language_model" in name or "multi_modal_projector" in name for name in trained)
    assert any("multi_modal_projector" in name and "lora" not in name for name in trained)
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in trained if "lora_" in name}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    for from_zero, first in ((True, 0), (False, 1 / 11)):
        factors = [cosine_with_warmup(step, 10, 100, from_zero) for step in range(101)]
        assert factors[0] == first
        assert max(factors) == factors[10] == 1
        assert factors[:11] == sorted(factors[:11])
        assert factors[10:] == sorted(factors[10:], reverse=True)
        assert factors[99] > 0
        assert factors[100] == pytest.approx(0)


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_every_step_of_our_own_recipe_trains(steps: int) -> None:
    recipe = settings(warmup_share=0.3)
    optimizers, schedules = Tuner(
        add_lora(LVLM.load_model(), LVLM, recipe), recipe, steps, seed=0
    ).configure_optimizers()
    rates = []
    for _ in range(steps):
        rates.append(schedules[0]["scheduler"].get_last_lr())
        optimizers[0].step()
        schedules[0]["scheduler"].step()
    assert min(min(rates)) > 0
    assert max(rates) == [1e-3, 1e-4]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupted_tuning_ends_like_an_uninterrupted_one(
    records: list[Record], pool_folder: Path, workers: int
) -> None:
    # 24 samples, 2 a batch, 2 batches a step: 6 steps an epoch. The cuts fall into the second epoch and into
    # the third, behind a step whose checkpoint is yet to come and behind one that has one.
    recipe = settings(epochs=4, lora_dropout=0.1)

    def run(name: str, logger: Logger | None = None) -> bytes:
        folder = pool_folder / name
        tune(records, folder, recipe, seed=3, workers=workers, logger=logger)
        return (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    whole = run("whole")
    # Lightning turns Ctrl-C into an exit with status 1, which `tune` undoes.
    for step, error in ((8, ConnectionError), (15, KeyboardInterrupt)):
        with pytest.raises(error):
            run("cut", PowerCut(pool_folder / "cut", step, error))
        assert list((pool_folder / "cut" / "checkpoints" / "single-1").glob("step=*.ckpt"))
    assert run("cut") == whole


class Stopped(Tuner):
    """Receives a signal in the first of the two micro-batches of its third step."""

    signal = signal.SIGTERM

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        if batch_idx == 4:
            signal.raise_signal(self.signal)
        return super().training_step(batch, batch_idx)


class Interrupted(Stopped):
    signal = signal.SIGINT


@pytest.mark.parametrize(("make_tuner", "error"), [(Stopped, SystemExit), (Interrupted, KeyboardInterrupt)])
def test_a_tuning_that_is_asked_to_stop_loses_no_step(
    records: list[Record], pool_folder: Path, make_tuner: type[Stopped], error: type[BaseException]
) -> None:
    def run(name: str, make_tuner: type[Tuner] = Tuner) -> bytes:
        folder = pool_folder / name
        tune(records, folder, settings(checkpoint_steps=100), seed=3, make_tuner=make_tuner)
        return (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    whole = run("whole")
    handlers = {signal.SIGTERM: lambda *_: sys.exit(143), signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with pytest.raises(error):
            run("cut", make_tuner)
        assert {number: signal.getsignal(number) for number in handlers} == handlers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    checkpoints = pool_folder / "cut" / "checkpoints" / "single-1"
    assert [file.name for file in checkpoints.glob("*.ckpt")] == ["step=3.ckpt"]
    assert run("cut") == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:1000],
        lambda data: data[:9000] + bytes([data[9000] ^ 1]) + data[9001:],
        lambda _: b"",
    ],
)
def test_a_damaged_checkpoint_is_named(
    records: list[Record], pool_folder: Path, damage: Callable[[bytes], bytes]
) -> None:
    folder = pool_folder / "damaged"

    def run(logger: Logger | None = None) -> None:
        tune(records, folder, seed=3, logger=logger)

    with pytest.raises(ConnectionError):
        run(PowerCut(folder, 4))
    (checkpoint,) = (folder / "checkpoints" / "single-1").glob("*.ckpt")
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(PreselError, match=rf"{checkpoint.name} is damaged .*; delete it"):
        run()
    checkpoint.unlink()
    run()


def test_a_tuning_cut_off_after_its_last_step_goes_on(
    records: list[Record], pool_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> bytes:
        folder = pool_folder / name
        tune(records, folder, settings(epochs=2), seed=3)
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
    tune(records[:4], folder, lvlm=lvlm)
    base, tuned = lvlm.load_model(), dict(lvlm.load_model(folder / "adapter").named_parameters())
    assert any(not torch.equal(weight, tuned[name]) for name, weight in base.named_parameters())


def test_throughput_is_measured(records: list[Record], pool_folder: Path) -> None:
    folder = pool_folder / "measured"
    measured = tune(records, folder)
    assert measured["samples_per_second"] > 0
    assert measured["response_tokens_per_second"] > measured["samples_per_second"]
    assert measured["utilization"] is None
    assert len(pd.read_csv(folder / "metrics" / "version_0" / "metrics.csv")) >= 1


def test_a_tuned_adapter_changes_the_model_and_loads_merged(records: list[Record], pool_folder: Path) -> None:
    folder = pool_folder / "tuned"
    measured = tune(records, folder)
    assert measured["steps"] == 6
    assert not (folder / "checkpoints").exists()
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    # Not in the order of a set, which PYTHONHASHSEED decides.
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["r"] == 4
    base, tuned = LVLM.load_model(), LVLM.load_model(folder / "adapter")
    weights = dict(tuned.named_parameters())
    changed = {name for name, weight in base.named_parameters() if not torch.equal(weight, weights[name])}
    assert changed
    assert not any("vision_tower" in name or "embed_tokens" in name for name in changed)


def test_answers_that_are_cut_are_counted(
    records: list[Record], pool_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = replace(
        records[0], conversations=[records[0].conversations[0], {"from": "gpt", "value": "no " * 300}]
    )
    folder = pool_folder / "cut"
    measured = tune([long, *records[1:4]], folder)
    assert measured["truncated"] == 1
    assert "1 of 4 samples are longer than lvlm.max_length=256 tokens" in capsys.readouterr().out


def test_records_without_a_response_within_the_maximal_length_are_left_out(
    records: list[Record], pool_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    question, answer = records[0].conversations[:2]
    question = question | {"value": question["value"] + " what" * 300}
    long = replace(records[0], conversations=[question, answer])
    with pytest.raises(PreselError, match="1 of 4 samples have no response within"):
        tune([long, *records[1:4]], pool_folder / "scored afterwards")
    measured = tune([long, *records[1:4]], pool_folder / "with", skip_unanswered=True)
    assert (measured["samples"], measured["left_out"]) == (3, 1)
    assert "1 of 4 samples have no response within lvlm.max_length=256 tokens, as '0000'" in caplog.text
    assert tune(records[1:4], pool_folder / "without")["loss"] == measured["loss"]
    with pytest.raises(PreselError, match=r"1 of 1 samples .*; raise lvlm\.max_length"):
        tune([long], pool_folder / "none", skip_unanswered=True)

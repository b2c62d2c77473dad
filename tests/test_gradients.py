"""Gradients of single samples against one backward pass each, and the strategies that compare them."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from peft import PeftModel

from presel.data.llava import Record
from presel.errors import PreselError
from presel.instructions.ledger import LEDGER
from presel.models import gradients as module
from presel.models.conversations import IGNORED, ConversationEncoder, Example
from presel.models.gradients import GradientProjector, signs
from presel.models.hardware import Hardware
from presel.selection.allocation import allocate_tasks
from presel.selection.feature_rows import Features
from presel.strategies.base import SelectionContext
from presel.strategies.gradients import Icons, Less, Tive
from tests.helpers import OWN_STORE, Program, last_run, on_folder, read_records, record, stage_files
from tests.training import CPU, LVLM, tune


def python_signs(rows: int, dimension: int) -> list[list[int]]:
    """The matrix of signs by SplitMix64 as published, on Python's integers."""
    words, state, bits = -(-dimension // 64), 0, []
    for _ in range(rows * words):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = state
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
        bits += [mixed >> place & 1 for place in range(64)]
    width = 64 * words
    return [[2 * bit - 1 for bit in bits[row * width :][:dimension]] for row in range(rows)]


@pytest.mark.parametrize("dimension", [1, 64, 100])
def test_signs_are_those_of_the_generator_wherever_they_start(dimension: int) -> None:
    expected = python_signs(40, dimension)
    assert signs(range(40), dimension, torch.device("cpu")).tolist() == expected
    assert signs(range(13, 29), dimension, torch.device("cpu")).tolist() == expected[13:29]


def test_signs_are_balanced_and_uncorrelated() -> None:
    drawn = signs(range(4096), 128, torch.device("cpu"))
    assert set(drawn.unique().tolist()) == {-1, 1}
    assert drawn.mean().abs() < 0.01
    correlations = (drawn.T @ drawn / len(drawn)).fill_diagonal_(0)
    assert correlations.abs().max() < 5.5 / 64  # 5.5 standard deviations, of 8,128 pairs


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `adapter/`, tuned on eight pictures of noise beside it."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("tuned")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        picture = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{number:04}.png")
    (folder / "pool.json").write_text(json.dumps([record(number) for number in range(8)]))
    records: list[Record] = read_records(folder / "pool.json")
    tune(records, folder / "model")
    return folder


@pytest.fixture(scope="module")
def examples(tuned: Path) -> list[Example]:
    """Samples of different lengths, with one turn or two."""
    found = []
    for number in range(7):
        turns = record(number)["conversations"]
        turns[1]["value"] += " Sure." * (3 * number % 4)
        turns += [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": f"{number}"}] * (number % 2)
        found.append(Example([tuned / "images" / f"{number:04}.png"], turns))
    return found


def one_by_one(
    adapter: Path, examples: list[Example], encoder: ConversationEncoder, inside: str
) -> npt.NDArray[np.float64]:
    """Gradients of the mean response loss by a backward pass for each sample, (n, P)."""
    model = PeftModel.from_pretrained(LVLM.load_model(), str(adapter), is_trainable=True).eval()
    weights = [weight for name, weight in model.named_parameters() if "lora_" in name and inside in name]
    rows = []
    for example in examples:
        batch = encoder.batch([example])
        labels = batch["labels"][0, 1:]
        logits = model(**batch.without("labels")).logits[0, :-1]
        chances = logits.log_softmax(dim=1)
        answered = labels != IGNORED
        loss = -chances[answered, labels[answered]].mean()
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)]))
    return torch.stack(rows).double().numpy()


@pytest.mark.parametrize(("modules", "inside"), [(None, "lora_"), ("self_attn", ".self_attn.")])
def test_projected_gradients_are_those_of_a_backward_pass_each_times_the_matrix(
    tuned: Path,
    examples: list[Example],
    modules: str | None,
    inside: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = ConversationEncoder(LVLM)
    expected = one_by_one(tuned / "model" / "adapter", examples, encoder, inside)
    matrix = signs(range(expected.shape[1]), 100, torch.device("cpu")).double().numpy()
    projector = GradientProjector(LVLM, tuned / "model" / "adapter", CPU, 100, modules)
    found = projector.project(encoder.batch(examples)).numpy()
    assert found.dtype == np.float32
    tolerance = 1e-4 * np.linalg.norm(expected, axis=1).max() / np.sqrt(100)
    np.testing.assert_allclose(found, expected @ matrix / np.sqrt(100), atol=tolerance)
    # The same in other batches, and in blocks that end within a LoRA matrix.
    monkeypatch.setattr(module, "_SIGNS_AT_ONCE", {"cpu": 100 * 999})
    apart = [projector.project(encoder.batch(examples[part])) for part in (slice(2), slice(2, 7))]
    np.testing.assert_allclose(torch.cat(apart).numpy(), found, atol=tolerance)


def test_norms_and_cosines_survive_the_projection(tuned: Path, examples: list[Example]) -> None:
    encoder = ConversationEncoder(LVLM)
    exact = one_by_one(tuned / "model" / "adapter", examples, encoder, "lora_")
    found = GradientProjector(LVLM, tuned / "model" / "adapter", CPU, 2048).project(encoder.batch(examples))
    products = found.double().numpy() @ found.double().numpy().T
    norms = np.linalg.norm(exact, axis=1)
    # The standard deviation of a cosine is at most √(2/d).
    scale = np.outer(norms, norms)
    np.testing.assert_allclose(products / scale, exact @ exact.T / scale, atol=0.15)


def test_a_model_tuned_in_bf16_has_nearly_the_same_gradients(tuned: Path, examples: list[Example]) -> None:
    batch = ConversationEncoder(LVLM).batch(examples)
    exact, rounded = (
        GradientProjector(LVLM, tuned / "model" / "adapter", hardware, 64).project(batch)
        for hardware in (CPU, Hardware(accelerator="cpu", precision="bf16-mixed"))
    )
    assert rounded.dtype == torch.float32
    assert 0.98 < torch.cosine_similarity(exact, rounded).min() < 1 - 1e-6


def test_a_batch_too_large_for_memory_is_halved(tuned: Path, examples: list[Example]) -> None:
    encoder = ConversationEncoder(LVLM)
    batch = encoder.batch(examples)
    projector = GradientProjector(LVLM, tuned / "model" / "adapter", CPU, 64)
    whole = projector.project(batch)
    room = 2

    def fill_up(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > room:
            raise torch.OutOfMemoryError

    projector._layers[0].register_forward_pre_hook(fill_up)
    torch.testing.assert_close(projector.project(batch), whole, atol=1e-4, rtol=1e-4)
    room = 0
    with pytest.raises(PreselError, match="does not fit into the device's memory"):
        projector.project(batch)


def test_modules_that_the_model_lacks_are_refused(tuned: Path) -> None:
    with pytest.raises(PreselError, match=r"strategy\.modules=attention: LoRA has no weights in"):
        GradientProjector(LVLM, tuned / "model" / "adapter", CPU, 64, "attention")


def seen(budget: int, pool: pd.DataFrame, seed: int = 0, **results: object) -> SelectionContext:
    return SelectionContext(pool=pool, budget=budget, rng=np.random.default_rng(seed), results=results)


def drawn(n: int, prefix: str, seed: int) -> Features:
    array = np.random.default_rng(seed).standard_normal((n, 16)).astype(np.float32)
    return Features(pd.Series([f"{prefix}{number:03}" for number in range(n)]), array)


def shuffled(features: Features, seed: int) -> Features:
    order = np.random.default_rng(seed).permutation(len(features.ids))
    return Features(features.ids[order].reset_index(drop=True), features.array[order])


POOL, VALIDATION = drawn(60, "p", 0), drawn(12, "v", 1)
TASKS = pd.DataFrame({"id": VALIDATION.ids, "task": list("abc") * 4})


def by_hand() -> dict[str, npt.NDArray[np.float64]]:
    """Mean cosine of every sample to the validation samples of each task."""
    unit = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in (POOL.array, VALIDATION.array)]
    cosines = unit[0] @ unit[1].T  # (60, 12)
    return {task: cosines[:, TASKS["task"] == task].mean(axis=1) for task in "abc"}


def test_icons_takes_the_samples_with_the_most_votes_and_draws_among_equal_ones() -> None:
    influences = by_hand()
    count = np.zeros(60)
    for values in influences.values():
        count += values >= np.percentile(values, 80)
    by_id = pd.Series(count, index=POOL.ids)

    def chosen(seed: int, order: int = 0) -> pd.DataFrame:
        return Icons().select(
            seen(
                12,
                pd.DataFrame({"id": POOL.ids}),
                seed,
                gradients=shuffled(POOL, order),
                validation_gradients=shuffled(VALIDATION, order),
                validation=TASKS,
            )
        )

    for seed in range(3):
        assert chosen(seed)["score"].tolist() == sorted(count, reverse=True)[:12]
        assert by_id[chosen(seed)["id"]].tolist() == chosen(seed)["score"].tolist()
        assert chosen(seed, order=1)["id"].tolist() == chosen(seed)["id"].tolist()
    assert set(chosen(0)["id"]) != set(chosen(1)["id"])


def test_less_takes_the_samples_with_the_largest_influence_on_a_task() -> None:
    best = np.max(list(by_hand().values()), axis=0)
    context = seen(
        9, pd.DataFrame({"id": POOL.ids}), gradients=POOL, validation_gradients=VALIDATION, validation=TASKS
    )
    chosen = Less().select(context)
    assert chosen["id"].tolist() == POOL.ids[np.argsort(-best)[:9]].tolist()
    assert chosen["score"].to_numpy() == pytest.approx(np.sort(best)[::-1][:9], abs=1e-6)


def tive(budget: int, features: Features, scale: float, seed: int = 0) -> pd.DataFrame:
    pool = pd.DataFrame({"id": POOL.ids, "task": ["a"] * 30 + ["b"] * 25 + ["c"] * 5})
    context = seen(budget, pool, seed, gradients=features)
    return Tive(scale=scale).select(context).set_index("id").loc[POOL.ids]


def test_tive_gives_tasks_of_large_gradients_more_and_draws_by_influence_on_the_own_task() -> None:
    array = POOL.array * np.where(np.arange(60) < 30, 3, 1)[:, None].astype(np.float32)
    features = Features(POOL.ids, array)
    table = tive(20, features, scale=0.001)
    assert table["selected"].sum() == 20
    norms = np.linalg.norm(array, axis=1)
    means = np.array([norms[:30].mean(), norms[30:55].mean(), norms[55:].mean()])
    np.testing.assert_allclose(table["gradient_norm"], norms, rtol=1e-6)
    np.testing.assert_allclose(table["task_weight"], np.repeat(means / means.sum(), [30, 25, 5]), rtol=1e-6)
    quotas = allocate_tasks(means / means.sum(), [30, 25, 5], 20).tolist()
    chosen = table["selected"].to_numpy()
    assert [chosen[:30].sum(), chosen[30:55].sum(), chosen[55:].sum()] == quotas
    unit = array / norms[:, None]
    for place in (slice(30), slice(30, 55), slice(55, 60)):
        own = (unit[place] @ unit[place].T).mean(axis=1)
        np.testing.assert_allclose(table["influence"][place], own, atol=1e-6)
    # With a large scale those of largest influence are drawn for certain.
    certain = tive(20, features, scale=1e9)
    for place, quota in zip((slice(30), slice(30, 55), slice(55, 60)), quotas, strict=True):
        best = certain["influence"][place].nlargest(quota)
        assert set(best.index) == set(certain[place].index[certain["selected"][place]])


def test_tive_depends_on_the_seed_and_not_on_the_order_of_the_rows() -> None:
    usual = tive(20, POOL, 0.001)
    pd.testing.assert_frame_equal(tive(20, shuffled(POOL, 4), 0.001), usual)
    assert (tive(20, POOL, 0.001, seed=1)["selected"] != usual["selected"]).any()
    # What the smallest task cannot take goes to the others.
    assert tive(58, POOL, 0.001)["selected"].sum() == 58


@pytest.fixture
def held_out(pool_folder: Path) -> list[str]:
    """Overrides that name validation samples in three target tasks."""
    records = [record(number, f"target {number % 3}") for number in range(40, 49)]
    (pool_folder / "validation.json").write_text(json.dumps(records))
    return ["validation=llava_json", f"validation.annotations={pool_folder}/validation.json"]


@pytest.mark.parametrize("strategy", ["icons", "less", "tive"])
def test_a_run_reads_all_instructions_and_the_validation_samples_besides(
    strategy: str, in_process: Program, pool_folder: Path, held_out: list[str]
) -> None:
    in_process.succeeds(
        "run",
        *on_folder(pool_folder),
        *held_out,
        f"strategy={strategy}",
        "strategy.dimension=64",
        "until=instructions",
        "budget=0.2",
    )
    ledgers = [pd.read_parquet(file) for file in stage_files(pool_folder, "instructions", LEDGER)]
    assert pd.concat(ledgers)["id"].nunique() == 60
    run = last_run(pool_folder)
    assert len(run.chosen) == 12
    targeted = strategy != "tive"
    assert run.requested_first == 1
    assert run.validation_samples == (9 if targeted else 0)
    assert ("validation" in run.stages) == ("validation_gradients" in run.stages) == targeted
    files = stage_files(pool_folder, "gradients", "features.npy")
    assert sorted(np.load(file).shape for file in files) == [(9, 64), (60, 64)][not targeted :]
    assert all(np.load(file).dtype == np.float32 for file in files)


@pytest.mark.parametrize(("other", "named"), [("eval.json", "evaluation"), ("pool.json", "pool")])
def test_validation_on_what_is_scored_or_selected_from_is_refused(
    other: str, named: str, in_process: Program, pool_folder: Path
) -> None:
    (pool_folder / "copy.json").write_bytes((pool_folder / other).read_bytes())
    told = in_process.refuses(
        "run",
        *on_folder(pool_folder),
        "strategy=less",
        "validation=llava_json",
        f"validation.annotations={pool_folder}/copy.json",
    )
    assert f"validation shares samples with {named}, and strategy=less reads their answers" in told


def test_a_single_record_of_the_evaluation_is_refused(
    in_process: Program, pool_folder: Path, held_out: list[str]
) -> None:
    records = json.loads((pool_folder / "validation.json").read_text())
    scored = json.loads((pool_folder / "eval.json").read_text())
    (pool_folder / "validation.json").write_text(json.dumps([*records, scored[3]], indent=1))
    told = in_process.refuses("run", *on_folder(pool_folder), *held_out, "strategy=less")
    assert "validation shares samples with evaluation" in told


def test_digits_of_the_evaluations_seed_are_refused(in_process: Program) -> None:
    told = in_process.refuses("run", "strategy=icons", "validation.seed=0", "validation.size=7")
    assert "validation shares samples with evaluation" in told
    assert "validation.seed" in told


def test_modules_that_the_model_lacks_are_reported_before_anything_is_bought(
    in_process: Program, pool_folder: Path
) -> None:
    tive = ("run", *on_folder(pool_folder), "strategy=tive", "strategy.dimension=64", "budget=0.2", OWN_STORE)
    for name in ("attention", "input_layernorm", "vision_tower"):
        assert f"strategy.modules={name}: LoRA has no" in in_process.refuses(
            *tive, f"strategy.modules={name}"
        )
    assert not (pool_folder / "outputs/store/instructions").exists()


def test_a_response_beyond_the_maximum_length_is_reported_before_any_gradient(
    in_process: Program, pool_folder: Path, held_out: list[str]
) -> None:
    records = json.loads((pool_folder / "validation.json").read_text())
    records[4]["conversations"][0]["value"] += " really" * 300
    (pool_folder / "validation.json").write_text(json.dumps(records))
    told = in_process.refuses(
        "run", *on_folder(pool_folder), *held_out, "strategy=icons", "strategy.dimension=64", "budget=0.2"
    )
    assert "record '0044': none of its responses lies within lvlm.max_length=" in told

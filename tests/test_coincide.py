"""COINCIDE against its definition: multimodal features, and every step of the selection."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from presel.data.prompts import Turn
from presel.data.sources import LlavaJson
from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.instructions.annotations import Annotations
from presel.instructions.ledger import requested_ids
from presel.models.conversations import ConversationEncoder, Example
from presel.models.decoding import generate_answers
from presel.models.hardware import Hardware
from presel.models.lvlm import Lvlm
from presel.models.multimodal import MultimodalEncoder, spread_layers
from presel.selection import FeatureRows
from presel.selection.feature_rows import Features
from presel.selection.kmeans.lloyd import spherical_kmeans
from presel.stages.instructions import InstructionsStage
from presel.stages.multimodal_features import MultimodalFeaturesStage
from presel.stages.pool import PoolStage
from presel.stages.selection import SelectionStage
from presel.storage.store import Store
from presel.strategies.base import SelectionContext
from presel.strategies.coincide import (
    Coincide,
    greedy_mmd,
    mean_similarities,
    sequential_quotas,
    text_half,
    transferabilities,
)
from tests.helpers import TINY, Program, record, stage_files

LVLM = Lvlm(path="builtin:digit_llava", template="plain", max_length=160)
CPU = Hardware(accelerator="cpu")

Float = npt.NDArray[np.float64]


def conversation(number: int) -> list[Turn]:
    """One or two turns, of a length that goes up and down with the number."""
    words = " ".join(["where is the red 7"] * (1 + 3 * number % 5))
    first: list[Turn] = [{"from": "human", "value": f"<image>\n{words}?"}, {"from": "gpt", "value": words}]
    second: list[Turn] = [{"from": "human", "value": "yes?"}, {"from": "gpt", "value": f"{number}"}]
    return first + second * (number % 2)


@pytest.fixture
def features_stage(pool_folder: Path) -> MultimodalFeaturesStage:
    records = [record(number, conversations=conversation(number)) for number in range(60)]
    (pool_folder / "pool.json").write_text(json.dumps(records))
    pool = PoolStage(
        source=LlavaJson(annotations=pool_folder / "pool.json", images=pool_folder / "images"), workers=0
    )
    instructions = InstructionsStage(pool=pool, chosen=pool, provider=Annotations(), purpose="whole pool")
    return MultimodalFeaturesStage(
        lvlm=LVLM, instructions=instructions, runtime=Runtime(hardware=CPU, batch_tokens=500)
    )


def by_definition(model: PreTrainedModel, encoder: ConversationEncoder, example: Example) -> Float:
    """The feature of one sample, without padding, from the model's own forward pass."""
    seen: list[Float] = []
    hooks = [
        layer.self_attn.o_proj.register_forward_hook(
            lambda _, __, output: seen.append(output[0].double().numpy())
        )
        for layer in model.model.language_model.layers
    ]
    batch = encoder.batch([example])
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    image = batch["input_ids"][0].numpy() == encoder.image_token
    assert image.sum() == 36
    halves = []
    for places in (image, ~image):
        for output in seen:
            squashed = np.tanh(output[places].mean(axis=0))
            halves.append(squashed / np.linalg.norm(squashed))
    return np.concatenate(halves) / np.sqrt(2 * len(seen))


def test_features_equal_a_plain_pass_sample_by_sample(pool_folder: Path) -> None:
    model, encoder = LVLM.load_model(), ConversationEncoder(LVLM)
    examples = [
        Example([pool_folder / "images" / f"{number:04}.png"], conversation(number)) for number in range(12)
    ]
    multimodal = MultimodalEncoder(model, LVLM.language_model, encoder.image_token)
    features = multimodal.features(encoder.batch(examples)).numpy()
    assert features.shape == (12, 2 * 4 * 160)
    for feature, example in zip(features, examples, strict=True):
        np.testing.assert_allclose(feature, by_definition(model, encoder, example), atol=1e-4)
    projections = [layer.self_attn.o_proj for layer in model.model.language_model.layers]
    assert not any(projection._forward_hooks for projection in projections)


def test_a_batch_too_large_for_memory_is_halved(pool_folder: Path) -> None:
    model, encoder = LVLM.load_model(), ConversationEncoder(LVLM)
    images = [pool_folder / "images" / f"{number:04}.png" for number in range(7)]
    batch = encoder.batch([Example([image], conversation(number)) for number, image in enumerate(images)])
    multimodal = MultimodalEncoder(model, LVLM.language_model, encoder.image_token)
    whole = multimodal.features(batch)

    def fill_up(_: torch.nn.Module, __: tuple[()], named: dict[str, Any]) -> None:
        if len(named["inputs_embeds"]) > 3:
            raise torch.OutOfMemoryError

    model.model.language_model.register_forward_pre_hook(fill_up, with_kwargs=True)
    torch.testing.assert_close(multimodal.features(batch), whole, atol=1e-5, rtol=0)
    with pytest.raises(PreselError, match=r"7 questions at once do not fit .*; lower evaluation\.batch_size"):
        generate_answers(model, encoder, batch.without("labels"), 3)


def test_a_model_without_output_projections_is_refused() -> None:
    with pytest.raises(PreselError, match=r"lvlm.language_model: 'vision_tower' has no modules"):
        MultimodalEncoder(LVLM.load_model(), "vision_tower", 3)


def test_layers_are_evenly_spaced() -> None:
    assert spread_layers(24) == [3, 7, 11, 15, 19]
    assert spread_layers(32) == [4, 9, 15, 20, 25]
    assert spread_layers(4) == [0, 1, 2, 3]
    for n_layers in range(5, 100):
        layers = spread_layers(n_layers)
        assert len(layers) == 5
        assert layers[0] >= 0
        assert layers[-1] < n_layers
        steps = [after - before for before, after in pairwise(layers)]
        assert max(steps) - min(steps) <= 1 <= min(steps)


def test_the_stage_names_its_rows(store: Store, features_stage: MultimodalFeaturesStage) -> None:
    ids, array = store.load(features_stage)
    assert ids.tolist() == [f"{number:04}" for number in range(60)]
    assert array.dtype == np.float16
    model, encoder = LVLM.load_model(), ConversationEncoder(LVLM)
    images = features_stage.instructions.pool.source.files(store).images
    for number in range(0, 60, 7):
        expected = by_definition(model, encoder, Example([images / f"{number:04}.png"], conversation(number)))
        np.testing.assert_allclose(array[number], expected, atol=2e-4)


def similarity(one: Float, other: Float) -> float:
    return float(np.exp(-np.square(one - other).sum() / 2))


def vectors(n: int, dimension: int = 6, seed: int = 0) -> Float:
    drawn = np.random.default_rng(seed).standard_normal((n, dimension))
    return unit(drawn)


def unit(rows: Float) -> Float:
    lengths: Float = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


def test_transferability_by_hand() -> None:
    centroids = np.array([[1, 0], [0, 2], [3, 4]], dtype=np.float32)
    # Cosines 0, 0.6 and 0.8.
    assert transferabilities(centroids).tolist() == pytest.approx([0.3, 0.4, 0.7])
    # The pair at 0.8 is left out, and the third keeps one.
    assert transferabilities(centroids, 0.7).tolist() == pytest.approx([0.3, 0.0, 0.6])
    assert transferabilities(centroids[:1]).tolist() == [0.9]
    alike = np.array([[1, 0], [1, 0.1], [-1, 0]], dtype=np.float32)
    assert transferabilities(alike)[0] == pytest.approx(-1)
    assert transferabilities(alike[:2]).tolist() == [0.9, 0.9]


def test_transferability_in_blocks_equals_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("presel.strategies.coincide._BLOCK", 100)
    centroids = vectors(40, 3).astype(np.float32)
    cosines = centroids.astype(np.float64) @ centroids.T
    expected = [row[row <= 0.9].mean() for row in cosines]
    assert max(cosines[~np.eye(40, dtype=bool)]) > 0.9
    np.testing.assert_allclose(transferabilities(centroids), expected, atol=1e-6)


def test_the_text_half_is_the_second() -> None:
    assert text_half(np.arange(8, dtype=np.float32).reshape(1, 8)).tolist() == [[4, 5, 6, 7]]


def test_density_by_hand() -> None:
    assert mean_similarities(np.array([[0.6, 0.8]])).tolist() == [1]
    pair = np.array([[1.0, 0], [0, 1]])
    assert mean_similarities(pair).mean() == pytest.approx((1 + np.exp(-1)) / 2)
    # In float32 their distance would be 0.
    near = np.array([[1, 0], [1, 1e-4]])
    assert 1 - mean_similarities(near).mean() == pytest.approx(1e-8 / 4, rel=1e-4)


def test_density_equals_the_mean_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("presel.strategies.coincide._BLOCK", 50)
    cluster = vectors(23)
    expected = [np.mean([similarity(one, other) for other in cluster]) for one in cluster]
    np.testing.assert_allclose(mean_similarities(cluster), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("weights", "sizes", "budget", "expected"),
    [
        ([4, 2, 1, 1], [10, 10, 10, 10], 8, [4, 2, 1, 1]),
        # In the order of the weights, whatever that of the clusters.
        ([1, 4, 1, 2], [10, 10, 10, 10], 8, [1, 4, 1, 2]),
        # The first gives 1 where it would give 4. Of 7 the second gives 2/4, 3.5, rounded to even.
        ([4, 2, 1, 1], [1, 10, 10, 10], 8, [1, 4, 2, 1]),
        # The last cannot take what is left, and the first goes on.
        ([1, 1], [10, 1], 8, [7, 1]),
        ([3, 1, 1], [20, 1, 1], 10, [8, 1, 1]),
        ([1, 1], [2, 3], 9, [2, 3]),
    ],
)
def test_sequential_quotas_by_hand(
    weights: list[int], sizes: list[int], budget: int, expected: list[int]
) -> None:
    assert sequential_quotas(np.log(weights), np.array(sizes), budget).tolist() == expected


def test_shares_of_any_size_do_not_overflow() -> None:
    log_weights = np.array([0.0, 9000.0, -9000.0])
    assert sequential_quotas(log_weights, np.array([2, 2, 2]), 5).tolist() == [2, 2, 1]


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 30)), min_size=1, max_size=20),
    st.integers(0, 300),
)
def test_shares_spend_the_budget_and_follow_the_softmax(
    clusters: list[tuple[float, int]], budget: int
) -> None:
    log_weights, sizes = (np.array(column) for column in zip(*clusters, strict=True))
    quotas = sequential_quotas(log_weights, sizes, budget)
    assert quotas.sum() == min(budget, sizes.sum())
    assert (quotas <= sizes).all()
    assert (quotas >= 0).all()
    # Where no cluster is too small, one visit in the order of the weights is all there is.
    ample = sequential_quotas(log_weights, np.full(len(sizes), budget + 1), budget)
    left = budget
    to_come = np.argsort(-log_weights, kind="stable")
    while len(to_come):
        weights = np.exp(log_weights[to_come] - log_weights[to_come].max())
        ideal = left * weights[0] / weights.sum()
        assert ample[to_come[0]] == pytest.approx(ideal, abs=0.5 + 1e-6)
        left -= ample[to_come[0]]
        to_come = to_come[1:]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_mmd_equals_a_search_by_the_definition(seed: int) -> None:
    cluster = vectors(14, 4, seed)
    kernel = np.array([[similarity(one, other) for other in cluster] for one in cluster])

    def squared_discrepancy(rows: list[int]) -> float:
        among, across = kernel[np.ix_(rows, rows)], kernel[:, rows]
        return float(kernel.mean() + among.mean() - 2 * across.mean())

    expected: list[int] = []
    for _ in range(9):
        others = [row for row in range(14) if row not in expected]
        expected.append(min(others, key=lambda row: squared_discrepancy([*expected, row])))
    assert greedy_mmd(cluster, mean_similarities(cluster), 9).tolist() == expected


def test_greedy_mmd_takes_all_and_of_copies_the_first() -> None:
    cluster = vectors(5)[[0, 1, 1, 2, 3, 3, 3, 4]]
    chosen = greedy_mmd(cluster, mean_similarities(cluster), 8).tolist()
    assert sorted(chosen) == list(range(8))
    assert chosen.index(1) < chosen.index(2)
    assert chosen.index(4) < chosen.index(5) < chosen.index(6)


def test_spherical_kmeans_ends_where_rows_and_centroids_agree() -> None:
    rows = vectors(300, 5).astype(np.float32)
    labels, centroids, _ = spherical_kmeans(FeatureRows(rows), 12, np.random.default_rng(0), 200)
    assert (labels == (rows @ centroids.T).argmax(axis=1)).all()
    for label in range(12):
        mean = rows[labels == label].mean(axis=0)
        np.testing.assert_allclose(centroids[label], mean / np.linalg.norm(mean), atol=1e-5)


def test_spherical_kmeans_leaves_no_cluster_empty() -> None:
    rows = vectors(6)[np.arange(60) % 6]
    labels, _, _ = spherical_kmeans(FeatureRows(rows), 20, np.random.default_rng(0), 50)
    assert set(labels) == set(range(20))


def choose(features: Features, budget: int) -> pd.DataFrame:
    pool = pd.DataFrame({"id": features.ids, "task": "vqa"})
    context = SelectionContext(
        pool=pool, budget=budget, rng=np.random.default_rng(3), results={"multimodal_features": features}
    )
    return Coincide().select(context)


@pytest.fixture
def features() -> Features:
    """700 samples around 30 centers, which makes eleven clusters."""
    centers = vectors(30, 16)[np.random.default_rng(1).integers(30, size=700)]
    array = unit(centers + 0.4 * vectors(700, 16, seed=2))
    return Features(pd.Series([f"{number:04}" for number in range(700)]), array.astype(np.float16))


@pytest.mark.parametrize("budget", [1, 33, 105, 699, 700])
def test_the_budget_is_spent_exactly_by_the_definition(budget: int, features: Features) -> None:
    table = choose(features, budget).set_index("id").loc[features.ids]
    assert table["selected"].sum() == budget
    labels = table["cluster"].to_numpy()
    # round(700 / 66.5)
    assert set(labels) == set(range(11))
    rows = unit(features.array.astype(np.float64))
    members = [rows[labels == label] for label in range(11)]
    centroids = unit(np.array([cluster.mean(axis=0) for cluster in members]))
    cosines = unit(centroids[:, 8:]) @ unit(centroids[:, 8:]).T
    transferability = np.array([row[row <= 0.9].mean() for row in cosines])
    np.testing.assert_allclose(table["transferability"], transferability[labels], atol=1e-5)
    means = [np.array([[similarity(x, y) for y in cluster] for x in cluster]).mean(1) for cluster in members]
    density = np.array([mean.mean() for mean in means])
    np.testing.assert_allclose(table["density"], density[labels], atol=1e-6)
    quotas = sequential_quotas(transferability / (density * 0.1), np.bincount(labels), budget)
    for label in range(11):
        ranks = table["rank"].to_numpy()[labels == label]
        assert sorted(ranks[~np.isnan(ranks)]) == list(range(1, quotas[label] + 1))
        # Nothing is nearer to a cluster than its most central sample.
        assert not quotas[label] or ranks[means[label].argmax()] == 1
    assert (table["rank"].notna() == table["selected"]).all()


def test_neither_the_order_of_the_rows_nor_the_ids_matter(features: Features) -> None:
    ids, array = features
    usual = choose(features, 105).set_index("id").sort_index()
    order = np.random.default_rng(4).permutation(700)
    others = ids[order].reset_index(drop=True)
    shuffled = choose(Features(others, array[order]), 105).set_index("id").sort_index()
    pd.testing.assert_frame_equal(shuffled, usual)
    renamed = choose(Features(others, array), 105).set_index("id").loc[others]
    pd.testing.assert_frame_equal(renamed.reset_index(drop=True), usual.reset_index(drop=True))


def test_a_pool_of_one_and_of_copies() -> None:
    one = Features(pd.Series(["a"]), vectors(1).astype(np.float16))
    assert choose(one, 1).loc[0, ["id", "selected"]].tolist() == ["a", True]
    copies = np.repeat(one.array, 200, axis=0)
    table = choose(Features(pd.Series([f"{number:03}" for number in range(200)]), copies), 10)
    assert table["selected"].sum() == 10


def test_an_undeclared_use_of_multimodal_features_is_refused() -> None:
    context = SelectionContext(pool=pd.DataFrame(), budget=1, rng=np.random.default_rng(0), results={})
    with pytest.raises(PreselError, match="reads 'multimodal_features' without declaring it"):
        Coincide().select(context)


def test_every_instruction_is_requested(store: Store, features_stage: MultimodalFeaturesStage) -> None:
    pool = features_stage.instructions.pool
    selection = SelectionStage(
        strategy=Coincide(), pool=pool, budget=0.2, seed=0, needed={"multimodal_features": features_stage}
    )
    assert len(store.load(selection)) == 12
    assert len(requested_ids(store, selection)) == 60


def test_the_command_line_selects_and_shares_features_between_seeds(
    in_process: Program, tmp_path: Path
) -> None:
    overrides = ["strategy=coincide", "until=selection", *TINY]
    in_process.succeeds("run", "-m", *overrides, "seed=0,1")
    assert len(stage_files(tmp_path, "multimodal_features", "features.npy")) == 1
    assert not stage_files(tmp_path, "model", "manifest.json")
    selections = [pd.read_parquet(file) for file in stage_files(tmp_path, "selection", "selection.parquet")]
    assert [table["selected"].sum() for table in selections] == [30, 30]
    (ledger,) = stage_files(tmp_path, "instructions", "ledger.parquet")
    assert set(pd.read_parquet(ledger)["id"]) == set(selections[0]["id"])
    refused = in_process.refuses("run", *overrides, "lvlm.path=./nowhere")
    assert "lvlm.path: no model in nowhere" in refused

"""PRISM against its definition: features of image tokens, redundancy, and what is read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from presel.data.prompts import IMAGE_TOKEN
from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.models.conversations import ConversationEncoder, Example
from presel.models.image_tokens import ImageTokenEncoder
from presel.models.lvlm import Lvlm
from presel.selection import FeatureRows
from presel.selection.feature_rows import Features
from presel.stages.features import ImageTokensStage
from presel.stages.pool import PoolStage
from presel.storage.store import Store
from presel.strategies.base import SelectionContext
from presel.strategies.prism import Prism, redundancies
from tests.families import FAMILIES, save_family
from tests.helpers import TINY, Program, last_run, on_folder, record
from tests.selection.mixtures import mixture
from tests.training import CPU

LVLM = Lvlm(path="builtin:digit_llava", template="plain", max_length=160)

Float = npt.NDArray[np.float64]


@pytest.mark.parametrize("layer", [1, 3])
def test_features_are_the_image_tokens_of_any_prompt_in_that_layer(pool_folder: Path, layer: int) -> None:
    images = [pool_folder / "images" / f"{number:04}.png" for number in range(5)]
    encoder = ImageTokenEncoder(LVLM, layer)
    features = np.concatenate(list(encoder.encode([images[:3], images[3:]], workers=0, accelerator="cpu")))
    model, conversations = LVLM.load_model(), ConversationEncoder(LVLM)
    for number, (feature, image) in enumerate(zip(features, images, strict=True)):
        # A question and an answer, as of the pool, behind the image.
        batch = conversations.batch([Example([image], record(number)["conversations"])])
        with torch.inference_mode():
            states = model(**batch, output_hidden_states=True).hidden_states
        assert len(states) == 5
        own = states[layer][0, batch["input_ids"][0] == conversations.image_token]
        assert own.shape == (36, 160)
        np.testing.assert_allclose(feature, own.mean(dim=0), rtol=1e-3, atol=1e-3)


def test_layers_above_are_not_computed(pool_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[torch.nn.Module] = []
    model = LVLM.load_model()
    for layer in model.model.language_model.layers:
        layer.register_forward_hook(lambda module, *_: run.append(module))
    kept = list(model.model.language_model.layers[:2])
    monkeypatch.setattr(Lvlm, "load_model", lambda _: model)
    list(ImageTokenEncoder(LVLM, 2).encode([[pool_folder / "images/0000.png"]], 0, "cpu"))
    assert run == kept


def test_a_layer_that_the_model_lacks_and_a_length_below_an_images_are_refused(
    in_process: Program, pool_folder: Path
) -> None:
    told = in_process.refuses("run", "strategy=prism", "strategy.layer=5", "until=selection", *TINY)
    assert "strategy.layer=5: the language model of builtin:digit_llava has 4 layers" in told
    short = ImageTokenEncoder(Lvlm(path=LVLM.path, template="plain", max_length=36), 1)
    with pytest.raises(PreselError, match=r"0000\.png: it takes 42 tokens, .* lvlm\.max_length=36; raise it"):
        next(short.encode([[pool_folder / "images/0000.png"]], 0, "cpu"))
    towered = Lvlm(path=LVLM.path, template="plain", language_model="multi_modal_projector")
    with pytest.raises(PreselError, match="'multi_modal_projector' has no list of layers"):
        next(ImageTokenEncoder(towered, 1).encode([[]], 0, "cpu"))


def test_an_image_too_large_is_refused_before_any_is_encoded(tmp_path: Path) -> None:
    lvlm = save_family(FAMILIES["qwen2_5_vl"], tmp_path / "model")
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("RGB", (60, 60)).save(small)
    Image.new("RGB", (600, 600)).save(large)
    prompt = Example([small], [{"from": "human", "value": IMAGE_TOKEN}])
    fitting = ConversationEncoder(lvlm).length(prompt.conversations, prompt.images)
    encoder = ImageTokenEncoder(replace(lvlm, max_length=fitting), 1)
    assert len(list(encoder.encode([[small]], 0, "cpu"))) == 1
    with pytest.raises(PreselError, match=rf"large\.png: it takes \d+ tokens, .*max_length={fitting}; raise"):
        next(encoder.encode([[small], [large]], 0, "cpu"))


def test_copies_are_encoded_once(store: Store, pool_folder: Path, pool: PoolStage) -> None:
    images = pool_folder / "images"
    (images / "0007.png").write_bytes((images / "0003.png").read_bytes())
    stage = ImageTokensStage(pool=pool, lvlm=LVLM, layer=1, runtime=Runtime(hardware=CPU))
    features = store.load(stage)
    assert store.manifest(stage)["measured"] == {"images": 60, "different_images": 59, "dimensions": 160}
    assert (features.array[3] == features.array[7]).all()


def by_definition(features: Float) -> list[float]:
    centered = features - features.mean(axis=0)
    units = [row / np.linalg.norm(row) for row in centered]
    return [
        float(np.mean([one @ other for place, other in enumerate(units) if place != own]))
        for own, one in enumerate(units)
    ]


def test_redundancy_equals_the_mean_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    # Several blocks.
    monkeypatch.setattr("presel.selection.feature_rows._BLOCK", 100)
    features = mixture(70, 12, 4) + 3
    expected = by_definition(features.astype(np.float64))
    np.testing.assert_allclose(redundancies(FeatureRows(features)), expected, atol=1e-6)
    assert np.ptp(expected) > 0.05


def test_redundancy_by_hand() -> None:
    # Around the mean (2, 2): two to the right, one to the left, one above and one below.
    cross = np.array([[3, 2], [3, 2], [0, 2], [2, 7], [2, -3]])
    assert redundancies(FeatureRows(cross.astype(np.float32))).tolist() == pytest.approx(
        [0, 0, -0.5, -0.25, -0.25]
    )
    # Of equal images none has a direction.
    assert redundancies(FeatureRows(np.full((3, 4), 0.1, dtype=np.float16))).tolist() == [0, 0, 0]
    assert redundancies(FeatureRows(np.ones((1, 4)))).tolist() == [0]


@given(arrays(np.float32, st.tuples(st.integers(2, 20), st.integers(1, 6)), elements=st.integers(1, 50)))
def test_redundancy_is_a_mean_correlation(features: npt.NDArray[np.float32]) -> None:
    found = redundancies(FeatureRows(features))
    assert (np.abs(found) <= 1 + 1e-9).all()
    # Neither shift nor scale matters.
    np.testing.assert_allclose(redundancies(FeatureRows(2 * features + 1)), found, atol=1e-5)


def choose(features: Features, budget: int) -> pd.DataFrame:
    context = SelectionContext(
        pool=pd.DataFrame({"id": features.ids}),
        budget=budget,
        rng=np.random.default_rng(0),
        results={"image_tokens": features},
    )
    return Prism().select(context)


@pytest.mark.parametrize("budget", [1, 33, 300])
def test_the_least_redundant_are_chosen_whatever_the_order_of_rows(budget: int) -> None:
    array = (mixture(300, 16, 5) + 1).astype(np.float16)
    ids = pd.Series([f"{number:03}" for number in range(300)])
    table = choose(Features(ids, array), budget)
    expected = by_definition(array.astype(np.float64))
    np.testing.assert_allclose(table["redundancy"], expected, atol=1e-6)
    assert set(table["id"][table["selected"]]) == set(ids[np.argsort(expected)[:budget]])
    order = np.random.default_rng(1).permutation(300)
    shuffled = choose(Features(ids[order].reset_index(drop=True), array[order]), budget)
    pd.testing.assert_frame_equal(shuffled, table)


def test_equal_images_go_by_id() -> None:
    array = np.ones((4, 3), dtype=np.float16)
    table = choose(Features(pd.Series(["d", "b", "a", "c"]), array), 2)
    assert table["id"][table["selected"]].tolist() == ["a", "b"]


def test_no_instruction_is_read_before_the_choice(in_process: Program, pool_folder: Path) -> None:
    in_process.succeeds("run", *on_folder(pool_folder), "strategy=prism", "until=instructions", "budget=0.2")
    run = last_run(pool_folder)
    assert {stage.name for stage in run.stages.values()} == {
        "pool",
        "image_tokens",
        "selection",
        "instructions",
    }
    ledger = pd.read_parquet(run.stages["instructions"].folder / "ledger.parquet")
    assert len(ledger) == 12
    assert set(ledger["stage"]) == {"selection"}
    assert set(ledger["id"]) == set(run.selection.query("selected")["id"])
    manifest = json.loads((run.stages["image_tokens"].folder / "manifest.json").read_text())
    assert manifest["measured"]["dimensions"] == 160

"""Features of images by the LVLM's own vision tower and projector."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from presel.errors import PreselError
from presel.models.conversations import ConversationEncoder, Example
from presel.models.encoder import LvlmEncoder
from presel.models.lvlm import Lvlm
from tests.helpers import Program, last_run, on_folder
from tests.training import LVLM


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Two noise images, of which one is not square."""
    generator, files = np.random.default_rng(0), []
    for name, size in (("wide", (20, 48)), ("square", (48, 48))):
        files.append(tmp_path / f"{name}.png")
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(files[-1])
    return files


def test_features_are_moments_of_the_tokens_that_the_language_model_gets(images: list[Path]) -> None:
    model, conversations = LVLM.load_model(), ConversationEncoder(LVLM)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    batch = conversations.batch([Example([file], turns) for file in images])  # type: ignore[arg-type]
    seen: list[torch.Tensor] = []
    model.get_submodule("model.language_model").register_forward_pre_hook(
        lambda _, __, given: seen.append(given["inputs_embeds"]), with_kwargs=True
    )
    with torch.inference_mode():
        model(**batch)
    tokens = seen[0][batch["input_ids"] == conversations.image_token].reshape(2, 36, 160).double().numpy()
    expected = np.hstack([tokens.mean(axis=1), tokens.std(axis=1)])
    (found,) = LvlmEncoder(lvlm=LVLM).encode([images], workers=0)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    one_by_one = LvlmEncoder(lvlm=LVLM).encode([[file] for file in images], workers=0)
    np.testing.assert_allclose(np.concatenate(list(one_by_one)), found, rtol=2e-3, atol=2e-3)


def test_precover_and_presel_run_on_the_models_own_features(in_process: Program, pool_folder: Path) -> None:
    run = ("run", *on_folder(pool_folder), "encoder=lvlm", "until=selection", "budget=12")
    in_process.succeeds(*run, "strategy=precover")
    features = last_run(pool_folder).stages["features"].folder
    assert np.load(features / "features.npy").shape == (60, 320)
    in_process.succeeds(*run, "strategy=precover", "strategy.picks=kmeans", "strategy.center=false")
    assert last_run(pool_folder).stages["features"].folder == features
    assert last_run(pool_folder).selection["selected"].sum() == 12


def test_a_missing_model_is_reported_before_any_work(in_process: Program, pool_folder: Path) -> None:
    run = ("run", *on_folder(pool_folder), "encoder=lvlm", "strategy=precover", "until=selection")
    assert "no model in /nowhere" in in_process.refuses(*run, "lvlm.path=/nowhere")
    assert "lvlm.template=llama_3 ends a response by" in in_process.refuses(*run, "lvlm.template=llama_3")
    with pytest.raises(PreselError, match="no model in /nowhere"):
        LvlmEncoder(lvlm=Lvlm(path="/nowhere")).check()

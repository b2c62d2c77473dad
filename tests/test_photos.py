"""Pretraining of `photo_llava`: captions that share a row, names of the tower's classes, resuming."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer

from experiments.photos import build as build_module
from experiments.photos import captioner as captioner_module
from experiments.photos.build import unseen_pictures
from experiments.photos.captioner import Captioner, Settings, load_projector, pretrain
from experiments.photos.class_names import Classes, named_projector, recognized
from presel.data.listing import sampling_order
from presel.errors import PreselError
from presel.settings.options import config_folder

CAPTIONS = [["a bowl of apples", "apples"], ["a table"], ["what is on the table?", "a user", "a chat"]] * 40
SETTINGS = Settings(epochs=2, batch_size=8, lr=1e-3, projector_lr=1e-3)
WIDTH = 48  # of the language model
TRAINED, HELD_OUT = np.split(np.random.default_rng(0).permutation(len(CAPTIONS)), [20])[::-1]


def projector() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(CAPTIONS), 4, 12)).astype(np.float16)


@torch.inference_mode()
def test_captions_in_one_row_cost_what_they_cost_alone(public: Path, features: np.ndarray) -> None:
    captioner = Captioner(public / "vicuna", projector(), features, CAPTIONS)
    together = captioner([0, 1, 2])
    sums, tokens = 0.0, 0
    for picture, captions in enumerate(CAPTIONS[:3]):
        for caption in captions:
            alone = Captioner(public / "vicuna", projector(), features[picture : picture + 1], [[caption]])
            length = sum(len(text) for text in alone._captions[0])
            sums += float(alone([0])) * length
            tokens += length
    assert float(together) == pytest.approx(sums / tokens, abs=1e-5)
    assert captioner([0, 1, 2], [0, 1, 2]) == together
    assert captioner([0, 1, 2], [1, 2, 0]) != together


def test_an_interrupted_pretraining_ends_like_an_uninterrupted_one(
    public: Path, features: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str) -> dict[str, torch.Tensor]:
        captioner = Captioner(public / "vicuna", projector(), features, CAPTIONS)
        words = captioner.language.get_input_embeddings().weight.clone()
        measured = pretrain(captioner, TRAINED, {"captions": HELD_OUT}, SETTINGS, tmp_path / name)
        assert measured["steps"] == 26
        before, _, after = (losses["captions"]["own"] for losses in measured["losses"])
        assert after < before
        assert torch.equal(captioner.language.get_input_embeddings().weight, words)
        return captioner.state_dict()

    monkeypatch.setattr(captioner_module, "_SAVE_EVERY", 2)
    whole = trained("whole")
    forward = Captioner.forward
    calls = 0

    def cut(self: Captioner, *arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 20:  # in the second epoch: 4 calls measured held-out losses
            raise KeyboardInterrupt
        return forward(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as cutting:
        cutting.setattr(Captioner, "forward", cut)
        with pytest.raises(KeyboardInterrupt):
            trained("cut")
    resumed = trained("cut")
    assert all((resumed[name] == weight).all() for name, weight in whole.items())
    captioner = Captioner(public / "vicuna", projector(), features, CAPTIONS)
    with pytest.raises(PreselError, match=r"whole: it was trained with .* another folder by --work"):
        pretrain(captioner, TRAINED, {"captions": HELD_OUT}, replace(SETTINGS, seed=1), tmp_path / "whole")


def test_what_is_saved_is_what_was_trained(public: Path, features: np.ndarray, tmp_path: Path) -> None:
    captioner = Captioner(public / "vicuna", projector(), features, CAPTIONS)
    with torch.no_grad():
        captioner.language.model.norm.weight.mul_(2)
        captioner.projector[0].bias.add_(1)
    captioner.save(tmp_path / "language", tmp_path / "mm_projector.bin")
    again = Captioner(
        tmp_path / "language", load_projector(tmp_path / "mm_projector.bin"), features, CAPTIONS
    )
    with torch.inference_mode():
        assert again([0, 1, 2]) == captioner([0, 1, 2])


def test_a_projector_starts_near_the_names_of_the_tower_s_classes(public: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(public / "vicuna")
    rng = np.random.default_rng(0)
    names = ["bowl", "table", "user", "chat"]
    classes = Classes(names, torch.from_numpy(rng.standard_normal((4, 8))).float(), torch.zeros(4))
    embeddings = torch.from_numpy(rng.standard_normal((len(tokenizer), 32))).float()
    features = rng.standard_normal((5, 100, 12)).astype(np.float16)
    positions = torch.from_numpy(features).float().flatten(end_dim=1)
    with torch.inference_mode():
        tokens = named_projector(features, classes, embeddings, tokenizer)(positions)
    ids = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]
    words = torch.stack([embeddings[own].mean(dim=0) for own in ids])
    center = words.mean(dim=0)
    nearest = cosine_similarity(tokens[:, None] - center, words - center, dim=2).argmax(dim=1)
    seen = (positions[:, :8] @ classes.weight.T).argmax(dim=1)
    assert (nearest == seen).float().mean() > 0.9


def test_pictures_are_named_by_the_classes_that_are_clearly_seen() -> None:
    classes = Classes(["Bowl", "table", "user", "chat"], 9 * torch.eye(4, 8), torch.zeros(4))
    features = np.zeros((40, 4, 12), dtype=np.float16)
    features[:20, :, 0] = 1  # a bowl
    features[20, :, 0] = features[20, :, 2] = 1  # a bowl as much as a user
    features[21, :2, 1] = 2  # a table at half of the positions
    named = recognized(features, classes, seed=0)
    assert sum(names == ["bowl"] for names in named.values()) + (20 in named) == 15
    assert named[21] == ["table"]
    assert not named.keys() & set(range(22, 40))  # nothing above the others
    assert recognized(features[20:21], classes, seed=1) in ({0: ["bowl", "user"]}, {0: ["user", "bowl"]})


def test_the_pool_that_is_left_out_is_the_experiment_s() -> None:
    experiment = yaml.safe_load((config_folder() / "experiment/photos.yaml").read_text())
    assert experiment["pool"]["limit"] == build_module._POOL_SIZE


def test_pictures_to_name_are_those_that_no_run_and_no_evaluation_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "_POOL_SIZE", 10)
    pool = [{"id": str(number), "image": f"{number % 25}.jpg"} for number in range(30)]
    (tmp_path / "pool.json").write_text(json.dumps(pool))
    (tmp_path / "eval.json").write_text(json.dumps([{"id": "a", "image": "3.jpg"}]))
    (tmp_path / "eval_dev.json").write_text(json.dumps([{"id": "b", "image": "7.jpg"}]))
    in_pool = sorted((record["id"] for record in pool), key=sampling_order)[:10]
    shown = {f"{int(name) % 25}.jpg" for name in in_pool} | {"3.jpg", "7.jpg"}
    expected = {f"{number}.jpg" for number in range(25)} - shown
    assert {picture.name for picture in unseen_pictures(tmp_path)} == expected


def test_a_model_is_not_described_by_another_training(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(PreselError, match="made was made from another folder than"):
        build_module.build(tmp_path, tmp_path / "work", tmp_path / "made", seed=0)


def test_features_of_other_pictures_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", np.zeros((2, 1, 2), np.float16))
    (tmp_path / "pictures.json").write_text('["images/a.jpg", "images/b.jpg"]')
    pictures = [Path("images/a.jpg"), Path("images/b.jpg")]
    assert len(build_module._features(tmp_path, tmp_path, pictures)) == 2
    with pytest.raises(PreselError, match="features of other pictures"):
        build_module._features(tmp_path, tmp_path, pictures[::-1])

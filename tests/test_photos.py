"""Pretraining of `photo_llava`: captions that share a row, a projector that starts from names, resuming."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer

from experiments.photos import captioner as captioner_module
from experiments.photos.captioner import Captioner, Settings, pretrain
from experiments.photos.class_names import Classes, named_projector

CAPTIONS = [["a bowl of apples", "apples"], ["a table"], ["what is on the table?", "a user", "a chat"]] * 40
SETTINGS = Settings(epochs=2, batch_size=8, lr=1e-3, projector_lr=1e-3)
CLASSES = Classes(["bowl", "table", "user"], torch.eye(3, 8), torch.zeros(3))


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(CAPTIONS), 4, 12)).astype(np.float16)


@torch.inference_mode()
def test_captions_in_one_row_cost_what_they_cost_alone(public: Path, features: np.ndarray) -> None:
    captioner = Captioner(public / "vicuna", CLASSES, features, CAPTIONS)
    together = captioner([0, 1, 2])
    sums, tokens = 0.0, 0
    for picture, captions in enumerate(CAPTIONS[:3]):
        for caption in captions:
            alone = Captioner(public / "vicuna", CLASSES, features[picture : picture + 1], [[caption]])
            alone.projector = captioner.projector
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
        captioner = Captioner(public / "vicuna", CLASSES, features, CAPTIONS)
        words = captioner.language.get_input_embeddings().weight.clone()
        measured = pretrain(captioner, len(CAPTIONS), SETTINGS, tmp_path / name)
        assert measured["steps"] == 6
        assert len(measured["own"]) == len(measured["other"]) == 3
        assert measured["own"][2] < measured["own"][0]
        assert torch.equal(captioner.language.get_input_embeddings().weight, words)
        return captioner.state_dict()

    monkeypatch.setattr(captioner_module, "_SAVE_EVERY", 2)
    whole = trained("whole")
    forward = Captioner.forward
    calls = 0

    def cut(self: Captioner, *arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 26:  # in the second epoch: 10 calls measure the held-out losses, 3 train
            raise KeyboardInterrupt
        return forward(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as cutting:
        cutting.setattr(Captioner, "forward", cut)
        with pytest.raises(KeyboardInterrupt):
            trained("cut")
    resumed = trained("cut")
    assert all((resumed[name] == weight).all() for name, weight in whole.items())


def test_what_is_saved_is_what_was_trained(public: Path, features: np.ndarray, tmp_path: Path) -> None:
    captioner = Captioner(public / "vicuna", CLASSES, features, CAPTIONS)
    with torch.no_grad():
        captioner.language.model.norm.weight.mul_(2)
        captioner.projector[0].bias.add_(1)
    captioner.save(tmp_path / "language", tmp_path / "mm_projector.bin")
    again = Captioner(tmp_path / "language", CLASSES, features, CAPTIONS)
    saved = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    again.projector.load_state_dict(
        {name.removeprefix("model.mm_projector."): weight for name, weight in saved.items()}
    )
    with torch.inference_mode():
        assert again([0, 1, 2]) == captioner([0, 1, 2])


def test_a_projector_starts_near_the_names_of_the_tower_s_classes(public: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(public / "vicuna")
    rng = np.random.default_rng(0)
    names = ["bowl", "table", "user", "chat"]
    classes = Classes(names, torch.from_numpy(rng.standard_normal((4, 8))).float(), torch.zeros(4))
    embeddings = torch.from_numpy(rng.standard_normal((len(tokenizer), 32))).float()
    features = rng.standard_normal((500, 12)).astype(np.float16)
    with torch.inference_mode():
        tokens = named_projector(features, classes, embeddings, tokenizer)(torch.from_numpy(features).float())
    ids = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]
    words = torch.stack([embeddings[own].mean(dim=0) for own in ids])
    center = words.mean(dim=0)
    nearest = cosine_similarity(tokens[:, None] - center, words - center, dim=2).argmax(dim=1)
    seen = (torch.from_numpy(features[:, :8]).float() @ classes.weight.T).argmax(dim=1)
    assert (nearest == seen).float().mean() > 0.9

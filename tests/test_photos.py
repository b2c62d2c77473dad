"""Pretraining of the projector of `photo_llava`: captions that share a row, and a run that goes on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.photos.projector import Captioner, Settings, pretrain

CAPTIONS = [["a bowl of apples", "apples"], ["a table"], ["what is on the table?", "a user", "a chat"]] * 40
SETTINGS = Settings(epochs=2, batch_size=8)


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(CAPTIONS), 4, 12)).astype(np.float16)


@torch.inference_mode()
def test_captions_in_one_row_cost_what_they_cost_alone(public: Path, features: np.ndarray) -> None:
    captioner = Captioner(public / "vicuna", features, CAPTIONS)
    projector = captioner.new_projector(0)
    together = captioner.loss(projector, [0, 1, 2])
    sums, tokens = 0.0, 0
    for picture, captions in enumerate(CAPTIONS[:3]):
        for caption in captions:
            alone = Captioner(public / "vicuna", features[picture : picture + 1], [[caption]])
            length = sum(len(text) for text in alone._captions[0])
            sums += float(alone.loss(projector, [0])) * length
            tokens += length
    assert float(together) == pytest.approx(sums / tokens, abs=1e-5)


def test_an_interrupted_pretraining_ends_like_an_uninterrupted_one(
    public: Path, features: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str) -> dict[str, torch.Tensor]:
        captioner = Captioner(public / "vicuna", features, CAPTIONS)
        (tmp_path / name).mkdir(exist_ok=True)
        out = tmp_path / name / "mm_projector.bin"
        measured = pretrain(captioner, len(CAPTIONS), SETTINGS, tmp_path / name, out)
        assert measured["steps"] == 6
        assert measured["held_out_losses"][2] < measured["held_out_losses"][0]
        weights: dict[str, torch.Tensor] = torch.load(out, weights_only=True)
        return weights

    whole = trained("whole")
    loss = Captioner.loss
    calls = 0

    def cut(self: Captioner, *arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 16:  # in the second epoch: 5 calls measure the held-out loss, 3 train
            raise KeyboardInterrupt
        return loss(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Captioner, "loss", cut)
    with pytest.raises(KeyboardInterrupt):
        trained("cut")
    monkeypatch.undo()
    resumed = trained("cut")
    assert all((resumed[name] == weight).all() for name, weight in whole.items())

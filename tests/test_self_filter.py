"""Self-Filter: the score net beside the model, and the picks, against plain autograd and brute force."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger

from presel.importance import instruction_relevance
from presel.instructions.ledger import LEDGER
from presel.models.conversations import IGNORED, ConversationEncoder, Example
from presel.models.score_net import SCORE_NET, ScoreNetTuner
from presel.models.tuner import Tuner, add_lora
from presel.selection import FeatureRows
from presel.selection.feature_rows import Features
from presel.stages.self_filter import min_max_scaled
from presel.storage.files import read_json
from presel.storage.integrity import MANIFEST
from presel.strategies import self_filter
from presel.strategies.base import SelectionContext
from presel.strategies.self_filter import SelfFilter, pick_difficult
from tests.helpers import Program, on_folder, read_records, stage_files
from tests.selection.mixtures import mixture
from tests.training import LVLM, PowerCut, settings, tune

SCORES = np.random.default_rng(0).uniform(-1, 1, (24, 3))


def test_columns_are_scaled_by_themselves_and_a_constant_one_is_zero() -> None:
    scaled = min_max_scaled(np.array([[0.0, 5.0, -3.0], [2.5, 5.0, 1.0], [10.0, 5.0, -1.0]]))
    assert scaled.tolist() == [[-1, 0, -1], [-0.5, 0, 1], [1, 0, 0]]


def test_a_step_equals_plain_autograd(pool_folder: Path) -> None:
    encoder = ConversationEncoder(LVLM)
    answers = ["yes", "There are 3 red circles.", "a 7", "no, there is one more"]
    examples = [
        Example(
            [pool_folder / "images" / f"000{number}.png"],
            [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}],
        )
        for number, answer in enumerate(answers)
    ]
    rows, start = [3, 0, 20, 7], [[0.8, -0.5, 0.3]]
    model = add_lora(LVLM.load_model(), LVLM, settings(lora_dropout=0.0))
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    sums, tokens = [], 0
    for example in examples:
        alone = encoder.batch([example])
        count = int((alone["labels"] != IGNORED).sum())
        sums.append(model(**alone).loss * count)
        tokens += count
    net = torch.tensor(start, requires_grad=True)
    weights = 4 * torch.softmax(torch.tensor(SCORES[rows]).float() @ net[0], dim=0)
    expected = (weights * torch.stack(sums)).sum() / tokens
    expected.backward()
    gradients = {name: weight.grad for name, weight in trained.items()}
    model.zero_grad()

    tuner = ScoreNetTuner(model, settings(), 10, 0, scores=SCORES, lr=0.5)
    plain = Tuner(model, settings(), 10, 0)
    tuner.trainer = plain.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batch = encoder.batch(examples) | {"rows": torch.tensor(rows), "step_tokens": torch.tensor(tokens)}
    # Equal weights at first: the loss is the ordinary one.
    torch.testing.assert_close(tuner.training_step(batch, 0), plain.training_step(batch, 0))
    tuner.score_net.weight.data = torch.tensor(start)
    loss = tuner.training_step(batch, 0)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(tuner.score_net.weight.grad, net.grad)
    assert net.grad is not None and net.grad.abs().min() > 1e-4
    for name, weight in trained.items():
        torch.testing.assert_close(weight.grad, gradients[name], atol=1e-5, rtol=1e-3)


def test_one_optimizer_trains_all_with_a_rate_for_the_net() -> None:
    model = add_lora(LVLM.load_model(), LVLM, settings())
    tuner = ScoreNetTuner(model, settings(), 10, 0, scores=SCORES, lr=0.5)
    (optimizer,), _ = tuner.configure_optimizers()
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-3, 1e-4, 0.5]
    assert optimizer.param_groups[2]["params"] == [tuner.score_net.weight]
    trained = [weight for weight in tuner.parameters() if weight.requires_grad]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)


def test_an_interrupted_training_ends_with_the_same_net(pool_folder: Path) -> None:
    records = read_records(pool_folder / "pool.json")[:24]
    # 24 samples, 2 a batch, 2 batches a step: 6 steps an epoch, of which the second is cut off at its fourth.
    recipe = settings(epochs=2, lora_dropout=0.1)

    def run(name: str, logger: Logger | None = None) -> list[float]:
        folder = pool_folder / name
        make_tuner = partial(ScoreNetTuner, scores=SCORES, lr=0.01)
        tune(records, folder, recipe, seed=3, logger=logger, make_tuner=make_tuner)
        assert not (folder / "adapter").exists()
        weights: list[float] = np.load(folder / SCORE_NET).tolist()
        return weights

    whole = run("whole")
    assert all(whole)
    with pytest.raises(ConnectionError):
        run("cut", PowerCut(pool_folder / "cut", 9))
    assert list((pool_folder / "cut" / "checkpoints" / "single-1").glob("step=*.ckpt"))
    assert run("cut") == whole


def by_brute_force(
    vectors: np.ndarray, difficulty: np.ndarray, budget: int, k: int, gamma: float
) -> list[int]:
    left = dict(enumerate(difficulty.tolist()))
    picks = []
    for _ in range(budget):
        pick = max(left, key=lambda row: (round(left[row], 9), -row))
        reached = left.pop(pick)
        cosines = {row: round(float(vectors[row] @ vectors[pick]), 9) for row in left}
        for row in sorted(left, key=lambda row: (-cosines[row], row))[:k]:
            left[row] -= gamma * reached * cosines[row] ** 2
        picks.append(pick)
    return picks


@pytest.mark.parametrize("kind", ["distinct", "tied", "negative"])
@pytest.mark.parametrize(("k", "gamma"), [(1, 1.0), (10, 1.0), (10, 0.3), (500, 1.0), (3, 0.0)])
@pytest.mark.parametrize(("ahead", "spare"), [(256, 64), (5, 1)])
def test_picks_equal_brute_force(
    kind: str, k: int, gamma: float, ahead: int, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_filter, "_AHEAD", ahead)
    monkeypatch.setattr(self_filter, "_SPARE", spare)
    generator = np.random.default_rng(k)
    rows = FeatureRows(mixture(120, 8, 4, seed=k), normalize=True)
    difficulty = generator.standard_normal(120)
    if kind == "tied":
        # Copies, equally difficult.
        copies = np.arange(120) // 6
        rows, difficulty = rows.subset(copies), np.round(difficulty, 1)[copies]
    elif kind == "negative":
        difficulty = -np.abs(difficulty)
    expected = by_brute_force(rows.take(np.arange(120)).astype(np.float64), difficulty, 120, k=k, gamma=gamma)
    for budget in (1, 30, 120):
        assert pick_difficult(rows, difficulty, budget, k, gamma).tolist() == expected[:budget]


def test_a_pick_makes_its_copies_worthless() -> None:
    rows = FeatureRows(np.array([[1, 0], [1, 0], [0, 1], [0.8, 0.6]]))
    # 4 · 1² falls off the copy, and 4 · 0.8² off the image at cosine 0.8.
    assert pick_difficult(rows, np.array([4.0, 3.9, 1.0, 3.7]), 4, k=3).tolist() == [0, 3, 2, 1]


def test_neither_the_order_of_rows_nor_of_scores_matters() -> None:
    names = pd.Series([f"{number:03}" for number in range(300)])
    vectors = np.repeat(mixture(150, 16, 5), 2, axis=0).astype(np.float16)
    scores = np.random.default_rng(0).integers(-3, 3, 300) / 3

    def chosen(order: np.ndarray) -> list[str]:
        context = SelectionContext(
            pool=pd.DataFrame({"id": names}),
            budget=60,
            rng=np.random.default_rng(0),
            results={
                "clip_features": Features(names[order].reset_index(drop=True), vectors[order]),
                "self_filter": pd.DataFrame({"id": names, "score": scores}).iloc[order[::-1]],
            },
        )
        choice = SelfFilter().select(context)
        assert choice["rank"].tolist() == list(range(1, 61))
        assert choice["difficulty"].tolist() == [-scores[int(name)] for name in choice["id"]]
        ids: list[str] = choice["id"].tolist()
        return ids

    first = chosen(np.arange(300))
    assert len(set(first)) == 60
    assert chosen(np.random.default_rng(1).permutation(300)) == first


def test_the_command_line_trains_the_net_and_requests_everything(
    in_process: Program, pool_folder: Path
) -> None:
    run = ("run", *on_folder(pool_folder), "strategy=self_filter", "until=selection", "budget=0.2")
    in_process.succeeds(*run)
    (file,) = stage_files(pool_folder, "selection", "selection.parquet")
    assert pd.read_parquet(file)["selected"].sum() == 12
    ledgers = pd.concat(pd.read_parquet(file) for file in stage_files(pool_folder, "instructions", LEDGER))
    assert ledgers["id"].nunique() == 60

    (file,) = stage_files(pool_folder, "self_filter", "self_filter.parquet")
    assert not (file.parent / "adapter").exists()
    measured = read_json(file.parent / MANIFEST)["measured"]
    # 60 samples are two batches an epoch, and there are three epochs.
    assert measured["steps"] == 6
    relevance = max(
        map(pd.read_parquet, stage_files(pool_folder, "relevance", "relevance.parquet")), key=len
    ).set_index("id")
    relevance["irs"] = instruction_relevance(
        relevance["loss_with_question"], relevance["loss_without_question"]
    )
    columns = list(measured["weights"])
    assert columns == ["loss_with_question", "loss_without_question", "el2n", "irs"]
    expected = min_max_scaled(relevance[columns].to_numpy()) @ list(measured["weights"].values())
    table = pd.read_parquet(file)
    assert table["id"].tolist() == relevance.index.tolist()
    assert table["score"].tolist() == pytest.approx(expected.tolist())
    assert table["score"].std() > 0

    in_process.succeeds(*run, "score_net=one_epoch")
    folders = [file.parent for file in stage_files(pool_folder, "self_filter", "self_filter.parquet")]
    steps = {read_json(folder / MANIFEST)["measured"]["steps"] for folder in folders}
    assert steps == {2, 6}

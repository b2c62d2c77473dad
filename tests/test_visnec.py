"""VisNec against its definition: losses without the image, clusters of questions, and the choice."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from presel.data.prompts import Turn
from presel.data.sources import LlavaJson
from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.instructions.annotations import Annotations
from presel.models.conversations import IGNORED, ConversationEncoder, Example
from presel.models.losses import image_losses
from presel.models.lvlm import Lvlm
from presel.models.model_files import locate
from presel.models.token_embeddings import TokenEmbeddings
from presel.selection.feature_rows import Features
from presel.stages.instructions import InstructionsStage
from presel.stages.pool import PoolStage
from presel.stages.question_features import QuestionFeaturesStage
from presel.stages.visual_necessity import VisualNecessityStage
from presel.storage.store import Store
from presel.strategies.base import SelectionContext
from presel.strategies.visnec import VisNec, most_necessary, question_clusters
from tests.helpers import Program, last_run, on_folder, record
from tests.selection.mixtures import mixture
from tests.training import CPU

LVLM = Lvlm(path="builtin:digit_llava", template="plain", max_length=160)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return LVLM.load_model()


@pytest.fixture(scope="module")
def encoder() -> ConversationEncoder:
    return ConversationEncoder(LVLM)


def conversation(number: int) -> list[Turn]:
    """One or two turns of changing length; in every fourth the image comes with the second question."""
    words = " ".join(["where is the red 7"] * (1 + 3 * number % 5))
    late = number % 4 == 3
    first: list[Turn] = [
        {"from": "human", "value": f"{'' if late else '<image>'}\n{words}?"},
        {"from": "gpt", "value": words},
    ]
    second: list[Turn] = [
        {"from": "human", "value": f"{'<image>' if late else ''}\nyes?"},
        {"from": "gpt", "value": f"{number}"},
    ]
    return first + second * (number % 2)


def loss(model: PreTrainedModel, inputs: Mapping[str, Tensor], **changed: Tensor) -> float:
    with torch.inference_mode():
        return float(model(**{**inputs, **changed}).loss)


def test_losses_equal_the_models_own_with_the_image_and_with_a_masked_one(
    model: PreTrainedModel, encoder: ConversationEncoder, pool_folder: Path
) -> None:
    examples = [
        Example([pool_folder / "images" / f"{number:04}.png"], conversation(number)) for number in range(12)
    ]
    found = image_losses(model, encoder.batch(examples), encoder.image_token)
    for row, example in enumerate(examples):
        batch = encoder.batch([example])
        assert found.n_tokens[row] == (batch["labels"] != IGNORED).sum()
        assert found.with_image[row] == pytest.approx(loss(model, batch), abs=1e-5)
        # As released: padding in the image's place, masked, and no picture.
        batch = batch.without("pixel_values")
        image = batch["input_ids"] == encoder.image_token
        assert image.sum() == 36
        masked = loss(
            model,
            batch,
            input_ids=batch["input_ids"].masked_fill(image, encoder.tokenizer.pad_token_id),
            attention_mask=batch["attention_mask"].masked_fill(image, 0),
            position_ids=torch.arange(image.shape[1])[None],
        )
        assert found.without_image[row] == pytest.approx(masked, abs=1e-5)
    assert (found.with_image - found.without_image).abs().min() > 1e-3


def test_a_batch_too_large_for_memory_is_halved(encoder: ConversationEncoder, pool_folder: Path) -> None:
    images = [pool_folder / "images" / f"{number:04}.png" for number in range(7)]
    batch = encoder.batch([Example([image], conversation(number)) for number, image in enumerate(images)])
    model = LVLM.load_model()
    whole = image_losses(model, batch, encoder.image_token)
    room = 3

    def fill_up(_: torch.nn.Module, __: tuple[()], named: dict[str, Any]) -> None:
        if len(named["inputs_embeds"]) > room:
            raise torch.OutOfMemoryError

    model.model.language_model.register_forward_pre_hook(fill_up, with_kwargs=True)
    for one, other in zip(whole, image_losses(model, batch, encoder.image_token), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    room = 0
    with pytest.raises(PreselError, match="does not fit into the device's memory"):
        image_losses(model, batch, encoder.image_token)


def test_a_question_is_the_mean_of_its_tokens(model: PreTrainedModel) -> None:
    texts = ["how many red circles?", "", "a </s> is text, not a token"]
    tokenizer = AutoTokenizer.from_pretrained(locate(LVLM.path))
    found = TokenEmbeddings(LVLM).means(texts).astype(np.float64)
    table = model.get_input_embeddings().weight.detach().double().numpy()
    ids = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    mean = table[ids].mean(axis=0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-3)
    assert not found[1].any()
    end = tokenizer.eos_token_id
    assert end in tokenizer(texts[2])["input_ids"]
    assert end not in ConversationEncoder(LVLM).text_tokens(texts[2])
    assert np.linalg.norm(found[2]) == pytest.approx(1, abs=1e-3)


@pytest.fixture
def whole(pool_folder: Path) -> InstructionsStage:
    records = [record(number, conversations=conversation(number)) for number in range(60)]
    (pool_folder / "pool.json").write_text(json.dumps(records))
    pool = PoolStage(
        source=LlavaJson(annotations=pool_folder / "pool.json", images=pool_folder / "images"), workers=0
    )
    return InstructionsStage(pool=pool, chosen=pool, provider=Annotations(), purpose="whole pool")


def test_the_stages_name_their_rows(
    store: Store,
    whole: InstructionsStage,
    model: PreTrainedModel,
    encoder: ConversationEncoder,
    pool_folder: Path,
) -> None:
    runtime = Runtime(hardware=CPU, batch_tokens=500)
    table = store.load(VisualNecessityStage(lvlm=LVLM, instructions=whole, runtime=runtime))
    assert table["id"].tolist() == [f"{number:04}" for number in range(60)]
    features = store.load(QuestionFeaturesStage(lvlm=LVLM, instructions=whole, runtime=runtime))
    assert features.ids.tolist() == table["id"].tolist()
    embeddings = TokenEmbeddings(LVLM)
    for number in range(0, 60, 7):
        image, turns = pool_folder / "images" / f"{number:04}.png", conversation(number)
        expected = image_losses(model, encoder.batch([Example([image], turns)]), encoder.image_token)
        row = table.loc[number, ["loss_with_image", "loss_without_image"]].tolist()
        assert row == pytest.approx([float(value) for value in expected[:2]], abs=1e-5)
        question = turns[0]["value"].removeprefix("<image>").strip()
        np.testing.assert_array_equal(features.array[number], embeddings.means([question])[0])


def test_a_sample_without_a_response_in_reach_is_named(store: Store, pool: PoolStage) -> None:
    whole = InstructionsStage(pool=pool, chosen=pool, provider=Annotations(), purpose="whole pool")
    short = Lvlm(path=LVLM.path, template="plain", max_length=45)
    with pytest.raises(PreselError, match=r"record '0000': none of its responses lies within .*length=45"):
        store.load(VisualNecessityStage(lvlm=short, instructions=whole, runtime=Runtime(hardware=CPU)))


def test_clusters_are_scikit_learns() -> None:
    vectors = mixture(3000, 16, 7)
    labels = question_clusters(vectors, 20, 42)
    expected = MiniBatchKMeans(n_clusters=20, random_state=42, batch_size=2048).fit_predict(vectors)
    assert labels.tolist() == expected.tolist()
    # Copies, of which some clusters stay empty.
    assert len(set(question_clusters(np.repeat(vectors[:3], 5, axis=0), 15, 0).tolist())) <= 3


def by_the_rule(labels: list[int], scores: list[int], budget: int) -> set[int]:
    ranked = sorted(range(len(labels)), key=lambda row: (-scores[row], row))
    clusters = {label: [row for row in ranked if labels[row] == label] for label in sorted(set(labels))}
    chosen: set[int] = set()
    for members in clusters.values():
        chosen.update(members[: len(members) * budget // len(labels)])
    without = [members[0] for members in clusters.values() if members[0] not in chosen]
    without.sort(key=lambda row: (-scores[row], labels[row]))
    return chosen | set(without[: budget - len(chosen)])


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(-3, 3)), min_size=1, max_size=60), st.data())
def test_each_cluster_gives_its_share_and_never_more_than_the_budget(
    samples: list[tuple[int, int]], data: st.DataObject
) -> None:
    labels, scores = (list(column) for column in zip(*samples, strict=True))
    budget = data.draw(st.integers(1, len(samples)))
    chosen = most_necessary(np.array(labels), np.array(scores, dtype=float), budget)
    assert set(np.flatnonzero(chosen)) == by_the_rule(labels, scores, budget)
    assert 1 <= chosen.sum() <= budget
    # A little less than one for each cluster is left over.
    assert budget - chosen.sum() < len(set(labels))


def test_the_published_rule_by_hand() -> None:
    labels = np.array([0] * 20 + [1] * 7 + [3] * 13)
    necessity = np.arange(40, dtype=float)
    # int(0.15 · 20) = 3, int(0.15 · 7) = 1, int(0.15 · 13) = 1, of a budget of 6.
    assert np.flatnonzero(most_necessary(labels, necessity, 6)).tolist() == [17, 18, 19, 26, 39]
    # A share below one sample is one sample.
    assert np.flatnonzero(most_necessary(labels, necessity, 4)).tolist() == [18, 19, 26, 39]
    assert np.flatnonzero(most_necessary(labels, necessity, 1)).tolist() == [39]


def choose(losses: pd.DataFrame, questions: Features, budget: int) -> pd.DataFrame:
    context = SelectionContext(
        pool=losses[["id"]],
        budget=budget,
        rng=np.random.default_rng(0),
        results={"visual_necessity": losses, "question_features": questions},
    )
    return VisNec(clusters=5).select(context)


@pytest.fixture
def losses() -> pd.DataFrame:
    drawn: npt.NDArray[np.float64] = np.random.default_rng(0).exponential(size=(200, 2))
    table = pd.DataFrame(drawn, columns=["loss_with_image", "loss_without_image"])
    table.insert(0, "id", [f"{number:03}" for number in range(200)])
    return table


def test_the_order_of_the_rows_does_not_matter(losses: pd.DataFrame) -> None:
    vectors = mixture(200, 16, 5, spread=0.1).astype(np.float16)
    table = choose(losses, Features(losses["id"], vectors), 40)
    assert 35 <= table["selected"].sum() <= 40
    assert table["cluster"].nunique() == 5
    difference = losses["loss_without_image"] - losses["loss_with_image"]
    np.testing.assert_array_equal(table["necessity"], difference)
    for _, members in table.groupby("cluster"):
        kept, left = members[members["selected"]], members[~members["selected"]]
        assert len(kept) == int(0.2 * len(members))
        assert kept["necessity"].min() >= left["necessity"].max()
    one, other = (np.random.default_rng(seed).permutation(200) for seed in (1, 2))
    shuffled = Features(losses["id"][other].reset_index(drop=True), vectors[other])
    pd.testing.assert_frame_equal(choose(losses.iloc[one], shuffled, 40), table)


def test_fewer_samples_than_clusters(losses: pd.DataFrame) -> None:
    few = losses.head(3)
    table = choose(few, Features(few["id"], mixture(3, 8, 3).astype(np.float16)), 2)
    assert table["selected"].sum() == 2


def test_every_instruction_is_read_and_no_model_is_tuned(in_process: Program, pool_folder: Path) -> None:
    in_process.succeeds("run", *on_folder(pool_folder), "strategy=visnec", "until=instructions", "budget=0.2")
    run = last_run(pool_folder)
    assert "reference_model" not in run.stages
    assert run.stages["visual_necessity"].name == "visual_necessity"
    ledger = pd.read_parquet(run.stages["all_instructions"].folder / "ledger.parquet")
    assert len(ledger) == 60
    assert set(ledger["stage"]) == {"whole pool"}
    chosen = run.selection.query("selected")
    assert 1 <= len(chosen) <= 12
    assert set(chosen["id"]) == set(
        pd.read_parquet(run.stages["instructions"].folder / "ledger.parquet")["id"]
    )

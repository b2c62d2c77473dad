"""Both losses of a sample from one pass equal those of two plain calls of the model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from presel.data.prompts import Turn
from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.importance import instruction_relevance, relevance_scores
from presel.instructions.annotations import Annotations
from presel.models.batching import fill_batches
from presel.models.conversations import IGNORED, ConversationEncoder, Example
from presel.models.hardware import Hardware
from presel.models.losses import Scorer, one_pass, two_passes
from presel.models.lvlm import Lvlm
from presel.models.prompt_pairs import pair, pair_batch
from presel.stages.instructions import InstructionsStage
from presel.stages.pool import PoolStage
from presel.stages.relevance import RelevanceStage
from presel.stages.tuning import TuningStage
from presel.storage.shards import TableShards
from presel.storage.store import Store
from tests.training import CPU, settings

LVLM = Lvlm(path="builtin:digit_llava", template="plain", max_length=160)


@pytest.fixture(scope="module")
def encoder() -> ConversationEncoder:
    return ConversationEncoder(LVLM)


@pytest.fixture
def model() -> PreTrainedModel:
    return LVLM.load_model()


@torch.inference_mode()
def test_a_model_tuned_in_bf16_computes_in_it_and_is_scored_in_one_pass(
    encoder: ConversationEncoder, model: PreTrainedModel, pool_folder: Path
) -> None:
    turns: list[Turn] = [
        {"from": "human", "value": "<image>\nHow many circles?"},
        {"from": "gpt", "value": "There are 3 circles."},
    ]
    batch = pair_batch(encoder, [Example([pool_folder / "images" / "0000.png"], turns)])
    mixed = LVLM.load_for_inference(Hardware(accelerator="cpu", precision="bf16-mixed"))
    inputs = encoder.batch([Example([pool_folder / "images" / "0000.png"], turns)])
    assert mixed(**inputs).logits.dtype == torch.bfloat16
    scorer = Scorer(mixed, autocast=True)
    losses = scorer.losses(batch)
    assert scorer.single_pass
    exact = Scorer(model).losses(batch)
    assert losses.with_question != exact.with_question
    torch.testing.assert_close(losses.with_question, exact.with_question, atol=0.1, rtol=0)


def conversation(generator: np.random.Generator) -> list[Turn]:
    """One to three turns of one to thirty words, the image in any question; some too long for the model."""
    turns: list[Turn] = []
    count = int(generator.integers(1, 4))
    shown = int(generator.integers(count)) if generator.random() < 0.2 else 0
    for turn in range(count):
        question, answer = (
            " ".join(
                generator.choice(["red", "7", "where is", "yes", "circle"], size=generator.integers(1, 31))
            )
            for _ in range(2)
        )
        prefix = "<image>\n" if turn == shown else ""
        turns += [{"from": "human", "value": prefix + question}, {"from": "gpt", "value": answer}]
    return turns


@pytest.fixture
def mixed(pool_folder: Path) -> list[Example]:
    generator = np.random.default_rng(0)
    return [
        Example([pool_folder / "images" / f"{number:04}.png"], conversation(generator))
        for number in range(60)
    ]


def plain_el2n(model: PreTrainedModel, encoder: ConversationEncoder, example: Example) -> float:
    inputs = encoder.batch([example])
    with torch.inference_mode():
        probabilities = model(**inputs).logits[0, :-1].softmax(-1)
    labels = inputs["labels"][0, 1:]
    places = labels != IGNORED
    errors = probabilities[places] - torch.eye(probabilities.shape[1])[labels[places]]
    return float(errors.norm(dim=1).mean())


def plain(model: PreTrainedModel, encoder: ConversationEncoder, example: Example, question: bool) -> float:
    with torch.inference_mode():
        return float(model(**encoder.batch([example], question)).loss)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_losses_equal_the_models_own_sample_by_sample(
    attention: str, model: PreTrainedModel, encoder: ConversationEncoder, mixed: list[Example]
) -> None:
    model.set_attn_implementation(attention)
    scorer = Scorer(model)
    for start in range(0, 60, 15):
        examples = mixed[start : start + 15]
        batch = pair_batch(encoder, examples)
        losses = scorer.losses(batch)
        assert scorer.passes(batch).tolist() == [1 if shares else 2 for shares in batch.shares_image]
        for row, example in enumerate(examples):
            assert losses.with_question[row] == pytest.approx(plain(model, encoder, example, True), abs=1e-5)
            assert losses.without_question[row] == pytest.approx(
                plain(model, encoder, example, False), abs=1e-5
            )
            assert losses.el2n[row] == pytest.approx(plain_el2n(model, encoder, example), abs=1e-5)
            labels = encoder.batch([example])["labels"]
            assert losses.n_tokens[row] == (labels != IGNORED).sum()
    assert scorer.single_pass


def test_the_mixture_holds_every_odd_case(encoder: ConversationEncoder, mixed: list[Example]) -> None:
    pairs = [pair(encoder, example) for example in mixed]
    assert {one.shares_image for one in pairs} == {one.truncated for one in pairs} == {True, False}
    assert {len(example.conversations) for example in mixed} == {2, 4, 6}


@torch.inference_mode()
def test_one_pass_and_two_agree(
    model: PreTrainedModel, encoder: ConversationEncoder, mixed: list[Example]
) -> None:
    sharing = [example for example in mixed if pair(encoder, example).shares_image]
    batch = pair_batch(encoder, sharing[:20])
    for one, two in zip(one_pass(model, batch), two_passes(model, batch), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_a_batch_too_large_for_memory_is_halved(
    model: PreTrainedModel, encoder: ConversationEncoder, mixed: list[Example]
) -> None:
    batch = pair_batch(encoder, mixed[:15])
    scorer = Scorer(model)
    whole = scorer.losses(batch)
    room = 4

    def fill_up(_: torch.nn.Module, __: tuple[()], named: dict[str, Any]) -> None:
        if len(named["inputs_embeds"]) > room:
            raise torch.OutOfMemoryError

    model.model.language_model.register_forward_pre_hook(fill_up, with_kwargs=True)
    for one, other in zip(whole, scorer.losses(batch), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    room = 0
    with pytest.raises(PreselError, match="does not fit into the device's memory"):
        scorer.losses(batch)


def test_a_model_that_takes_no_mask_gets_two_passes(
    model: PreTrainedModel,
    encoder: ConversationEncoder,
    mixed: list[Example],
    capsys: pytest.CaptureFixture[str],
) -> None:
    sharing = [example for example in mixed if pair(encoder, example).shares_image][:8]
    whole = Scorer(model).losses(pair_batch(encoder, sharing))

    def drop(_: torch.nn.Module, __: tuple[()], named: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        mask = named["attention_mask"]
        return (), named | {"attention_mask": mask if mask.ndim == 2 else None}

    model.model.language_model.register_forward_pre_hook(drop, with_kwargs=True)
    scorer = Scorer(model)
    # Nothing can be compared on samples whose image lies outside the prefix, so they decide nothing.
    apart = pair_batch(encoder, [example for example in mixed if not pair(encoder, example).shares_image][:2])
    scorer.losses(apart)
    assert scorer.single_pass is None
    assert scorer.passes(apart).tolist() == [2, 2]
    batch = pair_batch(encoder, sharing)
    losses = scorer.losses(batch)
    assert scorer.single_pass is False
    assert set(scorer.passes(batch).tolist()) == {2}
    assert "it takes two" in capsys.readouterr().out
    for one, other in zip(whole, losses, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_all_processes_decide_on_the_same_samples(
    model: PreTrainedModel, encoder: ConversationEncoder, mixed: list[Example]
) -> None:
    sharing = [example for example in mixed if pair(encoder, example).shares_image]
    sharing.sort(key=lambda example: len(pair(encoder, example).ids))
    short, long = (pair_batch(encoder, examples) for examples in (sharing[:4], sharing[-4:]))
    apart = pair_batch(encoder, [example for example in mixed if not pair(encoder, example).shares_image][:2])

    def forget(
        _: torch.nn.Module, __: tuple[()], named: dict[str, Any], output: BaseModelOutput
    ) -> BaseModelOutput:
        # Like a window of attention: one pass, with its own mask, differs for long samples only.
        if named["attention_mask"].ndim == 4 and named["inputs_embeds"].shape[1] > short.ids.shape[1]:
            output["last_hidden_state"] *= 0
        return output

    model.model.language_model.register_forward_hook(forget, with_kwargs=True)
    alone = Scorer(model)
    alone.losses(short)
    assert alone.single_pass
    scorer = Scorer(model)
    scorer.decide([apart, long, short])
    assert scorer.single_pass is False
    assert set(scorer.passes(short).tolist()) == {2}


def test_why_a_model_takes_two_passes_is_reported(
    model: PreTrainedModel,
    encoder: ConversationEncoder,
    mixed: list[Example],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(_: torch.nn.Module, __: tuple[()], named: dict[str, Any]) -> None:
        if named["attention_mask"].ndim == 4:
            raise ValueError("this attention takes\nno mask")

    model.model.language_model.register_forward_pre_hook(refuse, with_kwargs=True)
    sharing = [example for example in mixed if pair(encoder, example).shares_image][:2]
    Scorer(model).losses(pair_batch(encoder, sharing))
    said = " ".join(capsys.readouterr().out.split())
    assert "it takes two passes: ValueError: this attention takes no mask" in said


def test_a_loss_that_is_no_number_on_one_side_alone_is_a_difference(
    model: PreTrainedModel, encoder: ConversationEncoder, mixed: list[Example]
) -> None:
    def spoil(
        _: torch.nn.Module, __: tuple[()], named: dict[str, Any], output: BaseModelOutput
    ) -> BaseModelOutput:
        if named["attention_mask"].ndim == 4:
            output["last_hidden_state"] *= torch.nan
        return output

    model.model.language_model.register_forward_hook(spoil, with_kwargs=True)
    scorer = Scorer(model)
    batch = pair_batch(encoder, [example for example in mixed if pair(encoder, example).shares_image][:4])
    assert scorer.losses(batch).with_question.isfinite().all()
    assert scorer.single_pass is False


def test_a_loss_of_zero_is_counted_and_one_that_is_no_number_refused(
    store: Store, pool: PoolStage, pool_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instructions = InstructionsStage(pool=pool, chosen=pool, provider=Annotations(), purpose="reference")
    model = TuningStage(
        instructions=instructions, lvlm=LVLM, tune=settings(), seed=0, runtime=Runtime(hardware=CPU)
    )
    stage = RelevanceStage(
        model=model, instructions=instructions, runtime=Runtime(hardware=CPU, batch_tokens=1000)
    )
    scored = pd.DataFrame({"row": range(60), "loss_with_question": 0.5, "loss_without_question": 1.0})
    scored = scored.assign(el2n=0.1, n_tokens=3, passes=[1] * 50 + [2] * 10)

    def joined(loss: float) -> dict[str, Any]:
        """What comes of it if the shards of an earlier attempt hold this loss of three samples."""
        shards = TableShards(
            folder=pool_folder,
            items=range(60),
            label="",
            to_batches=lambda rows: [rows],
            compute_batches=lambda _: iter([]),
        )
        scored.loc[:2, "loss_without_question"] = loss
        shards.write(shards.files[0], [scored])
        return stage.join(store, pool_folder, shards)

    measured = joined(0.0)
    assert [measured[name] for name in ("in_one_pass", "in_two_passes", "irs_undefined")] == [50, 10, 3]
    assert "3 of 60 samples have a loss without question of exactly 0" in capsys.readouterr().out
    with pytest.raises(PreselError, match=r"'0000': its loss .* is not a number \(3 of 60 records\)"):
        joined(np.nan)


def test_a_sample_whose_response_is_cut_off_behind_its_question_is_refused(
    store: Store, pool: PoolStage, encoder: ConversationEncoder, pool_folder: Path
) -> None:
    """Without the question the response would still be in reach."""
    whole = InstructionsStage(pool=pool, chosen=pool, provider=Annotations(), purpose="whole pool")
    (example, *_) = whole.examples(store)
    tokens = encoder.prompt(example)
    before = [label == IGNORED for label in tokens.labels].index(False)
    short = replace(LVLM, max_length=before)
    both = pair(ConversationEncoder(short), example)
    assert any(label != IGNORED for label in both.labels)
    assert (both.answered, pair(encoder, example).answered) == (False, True)
    stage = RelevanceStage(model=short, instructions=whole, runtime=Runtime(hardware=CPU))
    with pytest.raises(PreselError, match="record '0000': none of its responses lies within"):
        store.load(stage)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(1, 1000))
def test_batches_are_filled_in_order_up_to_the_tokens(lengths: list[int], tokens: int) -> None:
    lengths.sort(reverse=True)
    batches = fill_batches(lengths, tokens)
    assert [row for batch in batches for row in batch] == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * lengths[batch[0]]
        assert padded <= tokens or len(batch) == 1
        assert padded + lengths[batch[0]] > tokens or batch is batches[-1]


def test_variants_of_the_score() -> None:
    losses = np.array([0.2, 1.0, 3.0]), np.array([0.4, 1.0, 2.0])
    assert (relevance_scores(*losses) == instruction_relevance(*losses)).all()
    assert relevance_scores(*losses, "difference").tolist() == pytest.approx([-0.2, 0.0, 1.0])
    assert relevance_scores(*losses, "perplexity_ratio").tolist() == pytest.approx(
        [np.exp(0.2) / np.exp(0.4), 1.0, np.exp(3.0) / np.exp(2.0)]
    )
    assert relevance_scores(*losses, "response_loss").tolist() == [0.2, 1.0, 3.0]
    with_zero = [1.0, 0.0, 1.0], [0.0, 0.0, 2.0]
    assert np.isnan(relevance_scores(*with_zero)).tolist() == [True, True, False]
    assert relevance_scores(*with_zero, "difference").tolist() == [1.0, 0.0, -1.0]
    with pytest.raises(ValueError, match="never negative"):
        relevance_scores([1.0], [-1.0])
    with pytest.raises(ValueError, match="score 'product' is unknown"):
        relevance_scores(*losses, "product")  # type: ignore[arg-type]

"""The CLIP score: cosines as transformers' own, the highest kept, and every instruction paid for."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from presel.data.digits.dataset import answerable
from presel.data.digits.scenes import Contents, render_scenes
from presel.data.digits.tasks import TASKS
from presel.data.images import open_image
from presel.data.prompts import as_turns
from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.instructions.annotations import Annotations
from presel.instructions.ledger import LEDGER, requested_ids
from presel.models.clip import Clip, clip_text
from presel.models.conversations import Example
from presel.models.hardware import Hardware
from presel.stages.clip_scores import ClipFeaturesStage, ClipScoresStage
from presel.stages.instructions import InstructionsStage
from presel.stages.pool import PoolStage
from presel.stages.selection import SelectionStage
from presel.storage.shards import chunks
from presel.storage.store import Store
from presel.strategies.base import SelectionContext
from presel.strategies.ranking import ClipScore
from tests.helpers import TINY, Program, record, stage_files, stage_lines

CLIP = Clip(path="builtin:digit_clip", batch_size=4)
CPU = Hardware(accelerator="cpu")
FOLDER = Path(str(files("presel") / "assets" / "digit_clip"))
MAX_TOKENS = 77


def scores(examples: list[Example], workers: int = 0) -> list[float]:
    batches = list(chunks(examples, CLIP.batch_size))
    found: list[float] = []
    for images, texts in CLIP.embed(batches, workers, "cpu"):
        found += (images * texts).sum(axis=1).tolist()
    return found


def score_by_hand(example: Example, text: str) -> float:
    """One sample without padding or batching, cut by hand to start, text and end."""
    model = CLIPModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer(text)["input_ids"]
    if len(ids) > MAX_TOKENS:
        ids = [*ids[: MAX_TOKENS - 1], tokenizer.eos_token_id]
    pixels = CLIPImageProcessorPil.from_pretrained(FOLDER)(open_image(example.images[0]), return_tensors="pt")
    with torch.inference_mode():
        image = model.get_image_features(**pixels).pooler_output[0]
        words = model.get_text_features(torch.tensor([ids])).pooler_output[0]
    return float(image @ words / (image.norm() * words.norm()))


@pytest.fixture
def examples(pool_folder: Path) -> list[Example]:
    turns = [record(number)["conversations"] for number in range(6)]
    turns[4] = [*turns[4], {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
    turns[5] = [*turns[5], {"from": "human", "value": "Sure? " * 60}, {"from": "gpt", "value": "Yes."}]
    return [Example([pool_folder / "images" / f"{number:04}.png"], one) for number, one in enumerate(turns)]


def test_a_conversation_is_read_without_its_image_token(examples: list[Example]) -> None:
    assert clip_text(examples[4].conversations) == (
        "USER: How many things are there? (4) ASSISTANT: There are 4. USER: Sure? ASSISTANT: Yes."
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_scores_are_the_cosines_of_transformers_own_embeddings(examples: list[Example], workers: int) -> None:
    texts = [clip_text(example.conversations) for example in examples]
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(FOLDER)(texts)["input_ids"]]
    assert [length > MAX_TOKENS for length in lengths] == [False] * 5 + [True]
    expected = [score_by_hand(example, text) for example, text in zip(examples, texts, strict=True)]
    assert scores(examples, workers) == pytest.approx(expected, abs=1e-5)


def test_what_a_text_says_beyond_the_limit_does_not_count(examples: list[Example]) -> None:
    longer = Example(examples[5].images, [*examples[5].conversations, *examples[0].conversations])
    assert scores([examples[5], longer]) == pytest.approx([scores(examples)[5]] * 2, abs=1e-5)


def test_a_caption_fits_its_own_picture_better_than_another(tmp_path: Path) -> None:
    size = 100
    contents = Contents.zipf(None, 0.0)
    scenes, turns = answerable(np.random.default_rng(7), TASKS["caption"], size, contents, "held_out")
    images = [tmp_path / f"{number}.png" for number in range(size)]
    for image, picture in zip(images, render_scenes(scenes), strict=True):
        Image.fromarray(picture).save(image)
    texts = [as_turns(one) for one in turns]
    own = scores([Example([image], text) for image, text in zip(images, texts, strict=True)])
    shuffled = scores(
        [Example([image], text) for image, text in zip(images, texts[1:] + texts[:1], strict=True)]
    )
    assert np.mean(np.array(own) > np.array(shuffled)) > 0.95


def test_the_highest_scores_are_kept_and_equal_ones_go_by_id() -> None:
    table = pd.DataFrame({"id": list("edcba"), "clip_score": np.float32([0.1, 0.3, 0.2, 0.3, 0.3])})
    context = SelectionContext(
        pool=table[["id"]], budget=3, rng=np.random.default_rng(0), results={"clip_scores": table}
    )
    chosen = ClipScore().select(context)
    assert chosen["id"].tolist() == ["a", "b", "d"]
    assert chosen["score"].tolist() == pytest.approx([0.3] * 3)


def test_a_model_that_is_no_clip_is_refused() -> None:
    CLIP.check()
    with pytest.raises(PreselError, match="'builtin:digit_dinov2' is a model of type 'dinov2'"):
        Clip(path="builtin:digit_dinov2").check()
    with pytest.raises(PreselError, match=r"clip\.path: no model in /nowhere"):
        Clip(path="/nowhere").check()


def test_the_whole_pool_is_requested(store: Store, pool: PoolStage) -> None:
    scored = ClipScoresStage(
        instructions=InstructionsStage(pool=pool, chosen=pool, provider=Annotations(), purpose="whole pool"),
        clip=CLIP,
        runtime=Runtime(hardware=CPU),
    )
    selection = SelectionStage(
        strategy=ClipScore(), pool=pool, budget=0.2, seed=0, needed={"clip_scores": scored}
    )
    assert len(store.load(selection)) == 12
    assert requested_ids(store, selection) == set(store.load(pool)["id"])


def test_features_are_both_embeddings_in_a_row(store: Store, pool: PoolStage) -> None:
    whole = InstructionsStage(pool=pool, chosen=pool, provider=Annotations(), purpose="whole pool")
    features = store.load(ClipFeaturesStage(instructions=whole, clip=CLIP, runtime=Runtime(hardware=CPU)))
    assert features.ids.tolist() == store.load(pool)["id"].tolist()
    images, texts = np.split(features.array.astype(np.float64), 2, axis=1)
    for part in (images, texts):
        assert np.linalg.norm(part, axis=1) == pytest.approx(np.ones(60), abs=1e-3)
    scored = store.load(
        ClipScoresStage(instructions=whole, clip=CLIP, runtime=Runtime(hardware=CPU))
    ).set_index("id")["clip_score"]
    assert (images * texts).sum(axis=1) == pytest.approx(scored[features.ids].to_numpy(), abs=2e-3)


def test_the_command_line_chooses_the_highest_scores(in_process: Program, tmp_path: Path) -> None:
    result = in_process.succeeds("run", "strategy=clip_score", "until=selection", "budget=0.15", *TINY)
    assert "selection (clip_score)" in stage_lines(result.stdout)
    (selection,), (scored,), (ledger,) = (
        stage_files(tmp_path, stage, name)
        for stage, name in (
            ("selection", "selection.parquet"),
            ("clip_scores", "clip_scores.parquet"),
            ("instructions", LEDGER),
        )
    )
    table = pd.read_parquet(selection).merge(pd.read_parquet(scored), on="id", validate="1:1")
    kept, left = table[table["selected"]], table[~table["selected"]]
    assert (len(kept), len(left)) == (30, 170)
    assert kept["clip_score"].min() >= left["clip_score"].max()
    assert set(pd.read_parquet(ledger)["id"]) == set(table["id"])

"""The built-in digit scenes and the models that ship with the package."""

import json
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from presel.data.digits.dataset import write_benchmarks, write_pool
from presel.data.digits.glyphs import GLYPHS, stencils
from presel.data.digits.narrow import NARROW_TASKS
from presel.data.digits.scenes import COLORS, Contents, render_scenes, sample, vary_scenes
from presel.data.digits.tasks import TASKS
from presel.errors import PreselError

ASSETS = Path(str(files("presel") / "assets"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_pool(folder / "pool", 300, seed=5)
    write_benchmarks(folder / "eval", 20, seed=5)
    return folder


def _records(folder: Path, name: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((folder / name / "annotations.json").read_text())
    return records


def test_same_seed_same_files(written: Path, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", 300, seed=5)
    write_benchmarks(tmp_path / "eval", 20, seed=5)
    paths = sorted(path.relative_to(written) for path in written.rglob("*.*"))
    assert len(paths) == 300 + 200 + 2
    assert all((written / path).read_bytes() == (tmp_path / path).read_bytes() for path in paths)


def test_other_seed_other_pool(written: Path, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", 300, seed=6)
    assert _records(written, "pool") != _records(tmp_path, "pool")


def test_a_pool_too_small_for_its_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        PreselError, match=r"pool\.size=5 leaves a task fewer than two images; 40 is the least"
    ):
        write_pool(tmp_path, 5, seed=0)


def test_narrow_tasks_are_cut_by_a_word_and_of_one_size(tmp_path: Path) -> None:
    write_pool(tmp_path, 4 * len(NARROW_TASKS), seed=0, tasks=NARROW_TASKS)
    records = _records(tmp_path.parent, tmp_path.name)
    assert set(Counter(record["task"] for record in records).values()) == {4}
    for record in records:
        name, word = record["task"].split("_")
        said = "gpt" if name in {"caption", "describe"} else "human"
        texts = [turn["value"].lower() for turn in record["conversations"] if turn["from"] == said]
        assert any(re.search(rf"\b{word}\b", text) for text in texts), record


def test_ten_tasks_of_unequal_size(written: Path) -> None:
    sizes = Counter(record["task"] for record in _records(written, "pool"))
    assert set(sizes) == set(TASKS)
    assert len(sizes) == 10
    assert sizes.total() == 300
    assert max(sizes.values()) > 3 * min(sizes.values())
    assert sum(task.share for task in TASKS.values()) == pytest.approx(1)


def test_records_are_llava_format(written: Path) -> None:
    for name in ("pool", "eval"):
        records = _records(written, name)
        assert len({record["id"] for record in records}) == len(records)
        for record in records:
            with Image.open(written / name / "images" / record["image"]) as image:
                assert (image.size, image.mode) == ((48, 48), "RGB")
            turns = record["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
            assert turns[0]["value"].startswith("<image>\n")
            assert all(turn["value"].strip() for turn in turns)


def test_evaluation_shows_handwriting_of_its_own() -> None:
    bank = stencils()
    # Six poses of each handwritten digit follow one another.
    train = {int(row) for rows in bank.train[:10] for row in rows // 6}
    held_out = {int(row) for rows in bank.held_out[:10] for row in rows // 6}
    assert train.isdisjoint(held_out)
    assert len(train | held_out) == 1797


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_scenes_stay_in_their_split(split: Any) -> None:
    scenes = sample(np.random.default_rng(0), 500, Contents.zipf(None, 0.0), split)
    allowed = getattr(stencils(), split)
    for number in range(len(GLYPHS)):
        assert np.isin(scenes.stencil[scenes.glyph == number], allowed[number]).all()


def test_answers_are_balanced_in_evaluation(tmp_path: Path) -> None:
    write_benchmarks(tmp_path / "eval", 100, seed=1)
    for task in TASKS:
        answers = Counter(
            record["conversations"][-1]["value"]
            for record in _records(tmp_path, "eval")
            if record["task"] == task
        )
        assert answers.most_common(1)[0][1] <= 52


def _views(task: str, size: int = 400) -> list[tuple[Any, str, str]]:
    rng = np.random.default_rng(3)
    scenes = sample(rng, size, Contents.zipf(None, 0.0))
    written = [(view, TASKS[task].write(rng, view)) for view in scenes.views()]
    return [(view, *turns[0]) for view, turns in written if turns]


def test_counts_agree_with_the_scene() -> None:
    for view, question, answer in _views("count"):
        names = [item.name.split() for item in view.items]
        if color := next((color for color in COLORS if color in question), None):
            expected = sum(name[0] == color for name in names)
        elif "digits" in question:
            expected = sum(name[1].isdigit() for name in names)
        elif "shapes" in question:
            expected = sum(not name[1].isdigit() for name in names)
        else:
            expected = len(names)
        assert answer == str(expected)


def test_readings_and_sums_agree_with_the_scene() -> None:
    for view, _, answer in _views("read"):
        ordered = sorted((item.box[0] + item.box[2], item.kind) for item in view.items if item.kind.isdigit())
        assert answer == "".join(kind for _, kind in ordered)
    for view, question, answer in _views("math"):
        if "sum" in question or "Add" in question:
            assert int(answer) == sum(int(item.kind) for item in view.items if item.kind.isdigit())


def test_letters_name_the_right_option() -> None:
    for view, question, answer in _views("choice"):
        assert f"\n{answer}\n" in question
        option, _, letter = answer.rpartition(": ")
        assert letter in "ABC"
        words = {item.name for item in view.items} | {COLORS[item.color] for item in view.items}
        if "Where" not in question and "place" not in question:
            assert option in words


def test_boxes_hold_the_ink() -> None:
    scenes = sample(np.random.default_rng(0), 50, Contents.zipf(None, 0.0))
    plain = render_scenes(scenes).astype(int)
    assert plain.shape == (50, 48, 48, 3)
    boxes = scenes.boxes[scenes.glyph >= 0]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 1


def test_near_duplicates_look_alike() -> None:
    rng = np.random.default_rng(0)
    scenes = sample(rng, 100, Contents.zipf(None, 0.0))
    first, again = render_scenes(scenes).astype(int), render_scenes(vary_scenes(rng, scenes)).astype(int)
    twins = np.abs(first - again).mean(axis=(1, 2, 3))
    strangers = np.abs(first - again[::-1]).mean(axis=(1, 2, 3))
    assert (twins > 0).all()
    assert np.median(twins) < np.median(strangers) / 2


def test_models_fit_in_eight_megabytes() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 8 * 2**20


def test_small_llava_loads_and_answers_a_padded_batch() -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = ASSETS / "digit_llava"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    pictures = render_scenes(sample(np.random.default_rng(0), 2, Contents.zipf(None, 0.0)))
    images = [Image.fromarray(picture) for picture in pictures]
    texts = ["USER: <image> ASSISTANT:", "USER: <image>\nWhat is that? ASSISTANT:"]

    def answers(rows: list[int]) -> list[str]:
        inputs = processor(
            images=[images[row] for row in rows],
            text=[texts[row] for row in rows],
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        decoded: list[str] = processor.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return decoded

    assert answers([0, 1]) == answers([0]) + answers([1])


def test_small_llava_tokenizer_takes_any_text() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "digit_llava")
    text = "Größe 1207, 日本語? 🙂\n[0.33, 0.02] <nothing>"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("207", add_special_tokens=False)["input_ids"]) == list(
        "207"
    )
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) == ("</s>", "<s>", "<pad>")


def test_small_dinov2_loads_and_runs() -> None:
    from transformers import AutoImageProcessor, AutoModel

    folder = ASSETS / "digit_dinov2"
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pictures = render_scenes(sample(np.random.default_rng(0), 3, Contents.zipf(None, 0.0)))
    inputs = processor([Image.fromarray(picture) for picture in pictures], return_tensors="pt")
    with torch.inference_mode():
        features = model(**inputs).last_hidden_state[:, 0]
    assert features.shape == (3, model.config.hidden_size)
    assert torch.isfinite(features).all()

"""The chain of LLaVA-1.5 on tiny models in the public formats: the same configs with other names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

from presel.data.llava665k import EXPECTED
from tests.helpers import Program, last_run, stage_lines
from tests.llava665k_records import MIXTURE

EACH = 8


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """A file worded as LLaVA-665K, eight records a task and some without an image, and its image folders."""
    generator = np.random.default_rng(0)
    records: list[dict[str, Any]] = [{"id": "text", "conversations": MIXTURE["gqa"]["conversations"]}] * 3
    for one in MIXTURE.values():
        for number in range(EACH):
            image = Path(one["image"]).with_name(f"{len(records):03}.jpg")
            (tmp_path / "images" / image).parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / image)
            records.append(one | {"image": image.as_posix()})
    held_out = [one | {"id": str(number), "task": "vqa"} for number, one in enumerate(records[3:9])]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    (tmp_path / "held_out.json").write_text(json.dumps(held_out))
    return tmp_path


def test_from_public_parts_to_scores(in_process: Program, public: Path, mixture: Path) -> None:
    in_process.succeeds(
        *("assemble", "--language", str(public / "vicuna"), "--vision", str(public / "clip")),
        *("--projector", str(public / "mm_projector.bin"), "--out", "outputs/models/llava15_7b"),
    )
    overrides = (
        *("lvlm=llava15_7b", "tune=llava15", "encoder=dinov2_base", f"encoder.path={public / 'dinov2'}"),
        *("pool=llava665k", "pool.annotations=mix.json", "pool.images=images", "executor.workers=0"),
        # As published, but for what so small a model and pool cannot take.
        *("lvlm.max_length=400", "tune.lora_rank=8", "tune.batch_size=8"),
        *("reference.share=0.25", "budget=0.5", "cluster.images_per_cluster=4"),
    )
    held_out = (
        "evaluation=llava_json",
        "evaluation.annotations=held_out.json",
        "evaluation.max_new_tokens=4",
    )
    in_process.succeeds("run", *overrides, *held_out)
    pool = pd.read_parquet(last_run(mixture).stages["images"].folder / "pool.parquet")
    assert pool["task"].value_counts().to_dict() == {
        name: EACH * (2 if name == "knowledge_vqa" else 1)
        for name in EXPECTED.keys() - {"ok_vqa", "a_okvqa"} | {"knowledge_vqa"}
    }
    manifest = json.loads((last_run(mixture).stages["images"].folder / "manifest.json").read_text())
    assert manifest["measured"]["text_only_left_out"] == 3
    trained = json.loads((last_run(mixture).stages["instructions"].folder / "train.json").read_text())
    assert len(trained) == len(MIXTURE) * EACH / 2

    merged = in_process.succeeds("run", *overrides, "until=merged")
    assert {label for label, how in stage_lines(merged.stdout).items() if how == "computed"} == {"merged"}
    model = AutoModelForImageTextToText.from_pretrained(last_run(mixture).stages["merged"].folder / "model")
    assert model.config.image_seq_length == 4

"""What decides a result is in its key: also the code of classes from outside the package."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from presel.data.image_folder import ImageFolder
from presel.data.sources import DigitScenes
from presel.instructions.local_model import LocalModel
from presel.instructions.prompts import Prompt, Prompts
from presel.models.clip import Clip
from presel.models.encoder import Encoder
from presel.models.lvlm import Lvlm
from presel.storage.stage import identity


def test_a_class_from_elsewhere_counts_with_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    keys = set()
    for name, text in (("one", "head"), ("other", "head"), ("one", "tail")):
        (tmp_path / f"{name}.py").write_text(
            "from dataclasses import dataclass\n@dataclass\nclass Mine:\n    size: int = 1\n"
            f"    def select(self, table):\n        return table.{text}(self.size)\n"
        )
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        keys.add(str(identity(importlib.import_module(name).Mine())))
    assert len(keys) == 3


PROMPTS = Prompts(kinds={"any": Prompt(request="Ask.")}, default="any")
SUBCLASS = """
from presel.component import component
from {module} import {base}

@component
class Mine({base}):
    crop: int = 1
{text}
"""


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        (Encoder, {"path": "builtin:digit_dinov2"}),
        (Clip, {"path": "builtin:digit_clip"}),
        (Lvlm, {"path": "builtin:digit_llava"}),
        (DigitScenes, {"split": "pool", "size": 4}),
        (ImageFolder, {"images": "images"}),
        (
            LocalModel,
            {
                "model": "builtin:digit_llava",
                "prompts": PROMPTS,
                "answers": "answers",
            },
        ),
    ],
)
def test_a_users_subclass_never_has_the_key_of_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: type, settings: dict[str, Any]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = [identity(base(**settings))]
    for text in ("", "    # Another text.\n"):
        source = SUBCLASS.format(module=base.__module__, base=base.__name__, text=text)
        (tmp_path / "mine.py").write_text(source)
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        mine = importlib.import_module("mine").Mine
        found += [identity(mine(**settings)), identity(mine(**settings, crop=2))]
    assert len({json.dumps(one, sort_keys=True) for one in found}) == 5

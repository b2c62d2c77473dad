"""What decides a result is in its key: also the code of classes from outside the package."""

import ast
import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors import safe_open

import presel
from presel.data.image_folder import ImageFolder
from presel.data.llava import image_paths
from presel.data.sources import DigitScenes, LlavaJson
from presel.errors import PreselError
from presel.evaluation.benchmarks import DigitBenchmarks, LlavaBenchmarks
from presel.evaluation.vlmevalkit import VlmEvalColumn, VlmEvalKit
from presel.instructions.annotations import Annotations
from presel.instructions.local_model import LocalModel
from presel.instructions.prompts import Prompt, Prompts
from presel.models.clip import Clip
from presel.models.encoder import Encoder, LvlmEncoder
from presel.models.hardware import Hardware
from presel.models.lvlm import Lvlm
from presel.models.model_files import model_fingerprint
from presel.models.precomputed import Precomputed
from presel.models.tune import Tune
from presel.stages.clusters import Clustering
from presel.stages.pool import PoolStage
from presel.stages.reference import ReferenceStage
from presel.storage.stage import Stage, identity
from presel.strategies.precover import PreCover
from presel.strategies.presel import PreSel
from presel.strategies.random import Random


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


def test_a_class_from_elsewhere_counts_with_what_its_module_imports_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "choosing/__init__.py": "",
        "choosing/mine.py": "from dataclasses import dataclass\nfrom .parts import near\n"
        "import beside_choosing\n"
        "from presel.selection import cluster\n@dataclass\nclass Mine:\n    size: int = 1\n",
        "choosing/parts/__init__.py": "",
        "choosing/parts/near.py": "def distance():\n    from choosing import far\n    return far\n",
        "choosing/far.py": "SCALE = 1\nimport choosing.mine\n",
        "choosing/unused.py": "SCALE = 1\n",
        "beside_choosing.py": "SCALE = 1\n",
        "presel/selection.py": "never read\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("choosing.mine").Mine()
    assert set(identity(mine)["class"]["source"]) == {
        *("choosing", "choosing.mine", "choosing.parts", "choosing.parts.near", "choosing.far"),
        "beside_choosing",
    }
    counted = {}
    for name, text in files.items():
        before = identity(mine)
        (tmp_path / name).write_text(f"{text}# edited\n")
        counted[name] = identity(mine) != before
    assert [name for name, counts in counted.items() if not counts] == [
        "choosing/unused.py",
        "presel/selection.py",
    ]


def test_of_an_installed_module_only_its_own_text_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "installed_helper.py").write_text("SCALE = 1\n")
    (folder / "installed_mine.py").write_text(
        "from dataclasses import dataclass\nimport installed_helper\n@dataclass\nclass Mine:\n    pass\n"
    )
    monkeypatch.syspath_prepend(folder)
    mine = importlib.import_module("installed_mine").Mine()
    assert set(identity(mine)["class"]["source"]) == {"installed_mine"}


POOL = PoolStage(source=DigitScenes(split="pool", size=4), workers=0)
PROMPTS = Prompts(kinds={"any": Prompt(request="Ask.")}, default="any")
SUBCLASS = """
from dataclasses import dataclass
from presel.component import component
from {module} import {base} as Base

{decorator}
class {name}(Base):
{body}
"""
# One class of every kind that a key may hold, with arguments.
KINDS: list[tuple[type, dict[str, Any]]] = [
    (Encoder, {"path": "builtin:digit_dinov2"}),
    (Clip, {"path": "builtin:digit_clip"}),
    (Lvlm, {"path": "builtin:digit_llava"}),
    (LvlmEncoder, {"lvlm": Lvlm(path="builtin:digit_llava")}),
    (Precomputed, {"file": "features.parquet"}),
    (Hardware, {"accelerator": "cpu"}),
    (
        Tune,
        {
            "lr": 1e-3,
            "projector_lr": 1e-4,
            "batch_size": 4,
            "micro_batch_size": 4,
            "lora_rank": 4,
            "lora_alpha": 8,
        },
    ),
    (Clustering, {}),
    (DigitScenes, {"split": "pool", "size": 4}),
    (ImageFolder, {"images": "images"}),
    (LlavaJson, {"annotations": "pool.json", "images": "images"}),
    (DigitBenchmarks, {"split": "benchmarks", "size": 4}),
    (LlavaBenchmarks, {"annotations": "pool.json", "images": "images"}),
    (VlmEvalKit, {"columns": {"a": VlmEvalColumn(file="a.csv", column="b")}}),
    (Annotations, {}),
    (LocalModel, {"model": "builtin:digit_llava", "prompts": PROMPTS, "answers": "answers"}),
    (Random, {}),
    (PreSel, {}),
    (PreCover, {}),
    (ReferenceStage, {"pool": POOL, "share": 0.1, "seed": 0}),
    (PoolStage, {"source": POOL.source, "workers": 0}),
]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a pool, which modules are imported from."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").touch()
    (tmp_path / "pool.json").write_text('[{"image": "one.png"}]')
    (tmp_path / "features.parquet").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("base", "settings"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("name", ["Mine", "of the base"])
def test_a_users_subclass_never_has_the_key_of_its_base(
    outside: Path, base: type, settings: dict[str, Any], name: str
) -> None:
    name = base.__name__ if name == "of the base" else name
    decorator = "@dataclass(frozen=True, kw_only=True)" if issubclass(base, Stage) else "@component"
    found = [identity(base(**settings))]
    for body, more in (
        ("    def helper(self): return 1", {}),
        ("    def helper(self): return 2", {}),
        ("    crop: int = 1", {"crop": 1}),
        ("    crop: int = 1", {"crop": 2}),
    ):
        text = SUBCLASS.format(
            module=base.__module__, base=base.__name__, decorator=decorator, name=name, body=body
        )
        (outside / "mine.py").write_text(text)
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        found.append(identity(getattr(importlib.import_module("mine"), name)(**settings, **more)))
    assert len({json.dumps(one, sort_keys=True) for one in found}) == 5


def test_a_large_model_is_its_content(tmp_path: Path) -> None:
    """A projector of 1 MiB in the middle of 300 MiB, which is as small a part as LLaVA-1.5's."""
    sizes = {"tower": 140 * 2**20, "projector": 2**20, "bias": 8, "language": 159 * 2**20}
    ends = dict(zip(sizes, accumulate(sizes.values()), strict=True))
    header = json.dumps(
        {
            name: {"dtype": "U8", "shape": [size], "data_offsets": [ends[name] - size, ends[name]]}
            for name, size in sizes.items()
        }
    ).encode()

    def fingerprint(name: str, changes: Mapping[int, bytes]) -> str:
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for place, data in changes.items():
                file.seek(8 + len(header) + place)
                file.write(data)
            file.truncate(8 + len(header) + ends["language"])
        with safe_open(tmp_path / name / "model.safetensors", "np") as read:
            assert set(read.keys()) == set(sizes)
        return model_fingerprint(str(tmp_path / name), None)

    projector = {ends["tower"]: b"p" * sizes["projector"]}
    found = [
        fingerprint("copy", {}),
        fingerprint("projector", projector),
        fingerprint("bias", {ends["bias"] - 1: b"b"}),
        fingerprint("last", {ends["language"] - 1: b"l"}),
    ]
    assert len(set(found)) == 4
    assert fingerprint("one", {}) == found[0]
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"no weights" * 2**23)
    with pytest.raises(PreselError, match=r"model\.safetensors: its header cannot be read"):
        model_fingerprint(str(tmp_path / "copy"), None)


def test_compiled_training_draws_other_masks() -> None:
    settings = dict(KINDS)[Tune]
    assert identity(Tune(**settings)) == identity(Tune(**settings, compile=False, checkpoint_steps=1))
    assert identity(Tune(**settings)) != identity(Tune(**settings, compile=True))


def test_a_class_without_a_file_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    module: dict[str, Any] = {"__name__": "nowhere", "dataclass": dataclass}
    monkeypatch.setitem(sys.modules, "nowhere", ModuleType("nowhere"))
    exec("@dataclass\nclass Mine:\n    size: int = 1", module)
    with pytest.raises(PreselError, match=r"class Mine was defined in no file, .*; put it into a module"):
        identity(module["Mine"]())


def test_no_two_classes_that_a_key_may_hold_have_one_name() -> None:
    """Keys hold the names of classes, and not where they are defined."""
    names: dict[str, list[str]] = defaultdict(list)
    stages: dict[str, list[str]] = defaultdict(list)
    for file in Path(presel.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            if any(ast.unparse(one).startswith(("component", "dataclass")) for one in node.decorator_list):
                names[node.name].append(file.name)
            for line in map(ast.unparse, node.body):
                if node.name.endswith("Stage") and line.startswith("name: ClassVar[str] ="):
                    stages[line].append(node.name)
    assert len(names) > 60
    assert len(stages) > 15
    assert not {name: files for name, files in (names | stages).items() if len(files) > 1}


def test_an_image_that_changes_changes_the_pool_without_a_look_at_the_records(outside: Path) -> None:
    source = {"annotations": Path("pool.json"), "images": Path("images")}
    (outside / "pool.json").write_text('[{"image" : "one.png", "text": "\\"image\\": \\"x\\""}, "broken"]')
    assert image_paths(outside / "pool.json") == ["one.png"]
    first = identity(LlavaJson(**source))
    assert identity(LlavaJson(**source, max_rejected_share=0.5)) == first
    (outside / "images" / "one.png").write_text("longer")
    assert identity(LlavaJson(**source)) != first

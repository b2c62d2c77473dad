"""The options of every group and what they mean, read from YAML files and docstrings without any import."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from presel.settings.paths import config_folder

_ROOT = Path(__file__).parents[2]
# The module of the groups that hold no component.
SCHEMA = "presel.settings.schema"
_REFERENCE = re.compile(r"\$\{([a-z_]+\.[a-z_.]+)\}")


@dataclass(frozen=True)
class Option:
    """One YAML file of a group.

    Attributes:
        group: The group, as in `strategy`.
        file: The file.
    """

    group: str
    file: Path

    @property
    def name(self) -> str:
        """What stands behind `group=`."""
        return self.file.stem

    @cached_property
    def meaning(self) -> str:
        """The first comment: what the option is; of an experiment, the one below its command."""
        lines = [line.lstrip("# ") for line in self.file.read_text("utf-8").splitlines() if line[:1] == "#"]
        lines = [
            line for line in lines if not line.startswith(("@package", f"presel run experiment={self.name}"))
        ]
        return lines[0] if lines else ""

    @cached_property
    def _content(self) -> dict[str, Any]:
        """The file's, or nothing where it cannot be read, which Hydra reports."""
        try:
            content = yaml.safe_load(self.file.read_text("utf-8"))
        except (yaml.YAMLError, OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its keys and values, with those of the options that it builds on; interpolations as written."""
        content = dict(self._content)
        settings: dict[str, Any] = {}
        for base in content.pop("defaults", None) or []:
            if isinstance(base, str) and base != "_self_":
                settings |= Option(self.group, self.file.with_name(f"{base}.yaml")).settings
            elif isinstance(base, dict) and not any(" " in key for key in base):
                for group, name in base.items():
                    nested = Option(f"{self.group}/{group}", self.file.parent / group / f"{name}.yaml")
                    settings[group] = nested.settings
        return settings | content

    @cached_property
    def choices(self) -> dict[str, list[str]]:
        """The options of other groups that an experiment chooses or sweeps over."""
        content = self._content
        listed = [entry for entry in content.get("defaults") or [] if isinstance(entry, dict)]
        chosen = {
            key.removeprefix("override /"): [str(name)] for entry in listed for key, name in entry.items()
        }
        sweeper = (content.get("hydra") or {}).get("sweeper") or {}
        swept = {key: str(values).split(",") for key, values in (sweeper.get("params") or {}).items()}
        return chosen | {key: [name.strip() for name in names] for key, names in swept.items()}

    @property
    def target(self) -> str:
        """The class that explains its keys."""
        kinds = fields_of(f"{SCHEMA}.Config")
        return str(self.settings.get("_target_") or f"{SCHEMA}.{kinds[self.group].annotation}")

    def reference(self, key: str) -> str | None:
        """The setting that a key takes its value from, if its YAML value is nothing but that."""
        found = _REFERENCE.fullmatch(str(self.settings.get(key)))
        return found[1] if found else None


def options(group: str, folders: Sequence[Path] = ()) -> dict[str, Option]:
    """The options of a group by their names, those in a user's own folders of configurations last."""
    files = [
        file for folder in (config_folder(), *folders) for file in sorted((folder / group).glob("*.yaml"))
    ]
    return {file.stem: Option(group, file) for file in files}


def config_folders(arguments: Sequence[str]) -> list[Path]:
    """The user's own folders of configurations, as arguments of `presel run` name them."""
    flags = ("--config-dir", "-cd")
    named = [value for flag, value in pairwise(arguments) if flag in flags]
    named += [one.partition("=")[2] for one in arguments if one.startswith("--config-dir=")]
    for one in arguments:
        if one.lstrip("+").startswith("hydra.searchpath="):
            named += re.findall(r"file://([^\],]+)", one)
    return [Path(folder) for folder in named]


def nearest(name: str, valid: Sequence[str]) -> str:
    """A hint at the most similar valid name, or nothing."""
    found = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""


@cache
def defaults() -> dict[str, str]:
    """The option of every group where none is chosen."""
    listed = yaml.safe_load((config_folder() / "config.yaml").read_text("utf-8"))["defaults"]
    pairs = [pair for entry in listed if isinstance(entry, dict) for pair in entry.items()]
    return {group: option for group, option in pairs if option and " " not in group}


@dataclass(frozen=True)
class Field:
    """A field of a class.

    Attributes:
        meaning: What the class's docstring says about it.
        annotation: Its type, as written.
        values: What it may be, if its type lists that.
    """

    meaning: str = ""
    annotation: str = ""
    values: tuple[str, ...] = ()


@cache
def fields_of(target: str) -> dict[str, Field]:
    """The fields of a class and its bases, by name; of classes whose module is not found, none."""
    module, _, name = target.rpartition(".")
    found = _find(module, name)
    if found is None or not isinstance(found[1], ast.ClassDef):
        return {}
    module, node = found[0], found[1]
    fields: dict[str, Field] = {}
    for base in reversed(node.bases):
        fields |= fields_of(f"{module}.{base.id}") if isinstance(base, ast.Name) else {}
    meanings = dict(_attributes(ast.get_docstring(node) or ""))
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            known = fields.get(line.target.id, Field())
            meaning = meanings.get(line.target.id, known.meaning)
            values = tuple(_values(module, line.annotation))
            fields[line.target.id] = Field(meaning, ast.unparse(line.annotation), values)
    return fields


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and texts of a docstring's section `Attributes`."""
    section = re.search(r"^Attributes:\n((?: .*\n?|\n)*)", docstring, re.MULTILINE)
    for name, text in re.findall(
        r"^    (\w+): (.*(?:\n     .*)*)", section[1] if section else "", re.MULTILINE
    ):
        yield name, " ".join(text.split())


def _values(module: str, annotation: ast.AST) -> Iterator[str]:
    """The values that a type's `Literal` lists, also where the type is only named there."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Literal"), slice=listed):
            elements = listed.elts if isinstance(listed, ast.Tuple) else [listed]
            yield from (str(one.value) for one in elements if isinstance(one, ast.Constant))
        case ast.BinOp(left=left, right=right):
            yield from (*_values(module, left), *_values(module, right))
        case ast.Name(id=name):
            match _find(module, name):
                case (where, ast.Assign(value=value)) | (where, ast.AnnAssign(value=ast.AST() as value)):
                    yield from _values(where, value)


def _find(module: str, name: str) -> tuple[str, ast.stmt] | None:
    """The module and the statement that define a name, followed through imports."""
    for line in _statements(module):
        match line:
            case ast.ClassDef(name=defined) | ast.AnnAssign(target=ast.Name(id=defined)):
                if defined == name:
                    return module, line
            case ast.Assign(targets=[ast.Name(id=defined)]):
                if defined == name:
                    return module, line
            case ast.ImportFrom(module=str(origin), names=names):
                if any(alias.name == name for alias in names):
                    return _find(origin, name)
    return None


@cache
def _statements(module: str) -> list[ast.stmt]:
    for folder in (_ROOT, Path.cwd()):
        for file in (
            folder / f"{module.replace('.', '/')}.py",
            folder / module.replace(".", "/") / "__init__.py",
        ):
            if file.is_file():
                return ast.parse(file.read_text("utf-8")).body
    return []

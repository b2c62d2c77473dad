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

_ROOT = Path(__file__).parents[2]
# The module of the groups that hold no component.
SCHEMA = "presel.settings.schema"
_REFERENCE = re.compile(r"\$\{([a-z_]+\.[a-z_.]+)\}")


def config_folder() -> Path:
    """The folder `conf`: inside an installed package, or beside it in a checkout."""
    inside = _ROOT / "presel" / "conf"
    return inside if inside.is_dir() else _ROOT / "conf"


@dataclass(frozen=True)
class Option:
    """One YAML file of a group, such as `strategy`."""

    group: str
    file: Path

    @cached_property
    def meaning(self) -> str:
        """The first comment: what the option is; of an experiment, the one below its command."""
        lines = (line.lstrip("# ") for line in self.file.read_text("utf-8").splitlines() if line[:1] == "#")
        passed_over = ("@package", f"presel run experiment={self.file.stem}")
        return next((line for line in lines if not line.startswith(passed_over)), "")

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
    def sweeps(self) -> bool:
        """Whether an experiment is a sweep without `-m`."""
        return (self._content.get("hydra") or {}).get("mode") == "MULTIRUN"

    @property
    def target(self) -> str:
        """The class that explains its keys: its component, or the schema's class for the group."""
        return str(self.settings.get("_target_") or f"{SCHEMA}.{self.group.capitalize()}")

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


@cache
def fields_of(target: str) -> dict[str, str]:
    """The fields of a class and its bases with their meanings; of classes whose module is not found, none."""
    module, _, name = target.rpartition(".")
    found = _find_class(module, name)
    if found is None:
        return {}
    module, node = found
    fields: dict[str, str] = {}
    for base in reversed(node.bases):
        fields |= fields_of(f"{module}.{base.id}") if isinstance(base, ast.Name) else {}
    meanings = dict(_attributes(ast.get_docstring(node) or ""))
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            field = line.target.id
            fields[field] = meanings.get(field, fields.get(field, ""))
    return fields


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and texts of a docstring's section `Attributes`."""
    section = re.search(r"^Attributes:\n((?: .*\n?|\n)*)", docstring, re.MULTILINE)
    for name, text in re.findall(
        r"^    (\w+): (.*(?:\n     .*)*)", section[1] if section else "", re.MULTILINE
    ):
        yield name, " ".join(text.split())


def _find_class(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """A class and the module that defines it, followed through imports."""
    for line in _statements(module):
        match line:
            case ast.ClassDef(name=defined) if defined == name:
                return module, line
            case ast.ImportFrom(module=str(origin), names=names) if any(one.name == name for one in names):
                return _find_class(origin, name)
    return None


@cache
def _statements(module: str) -> list[ast.stmt]:
    path = module.replace(".", "/")
    for folder in (_ROOT, Path.cwd()):
        for file in (folder / f"{path}.py", folder / path / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text("utf-8")).body
    return []

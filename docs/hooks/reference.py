"""The pages of the reference: every group, option and setting, and the help of every command.

Meanings come from the same YAML files and docstrings as `presel run --help`, types from the classes.
"""

import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic.fields import FieldInfo

from presel.cli import COMMANDS
from presel.settings.options import SCHEMA, Option, config_folder, defaults, fields_of, options

_MORE_GROUPS = {
    "instructions/prompts": "What models are asked to write, as option of `instructions`.",
    "published": "Published for one strategy on one pool; applied automatically when both are selected.",
    "experiment": "Prepared studies; none is the default.",
}
_WORDS: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "`true` or `false`",
    NoneType: "`null`",
    Any: "anything",
}
_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lists the pages in the navigation, below what it has under Reference."""
    section = next(entry["Reference"] for entry in config.nav or [] if "Reference" in entry)
    section += [{group: _path(group)} for group in _groups()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    pages = {"reference/index.md": _overview(), "reference/commands.md": _commands()}
    pages |= {_path(group): _group_page(group, meaning) for group, meaning in _groups().items()}
    for path, lines in pages.items():
        files.append(File.generated(config, path, content="\n".join(lines)))
    return files


def _groups() -> dict[str, str]:
    keys = fields_of(f"{SCHEMA}.Config")
    return {group: keys[group] for group in defaults()} | _MORE_GROUPS


def _path(group: str) -> str:
    return f"reference/{group.replace('/', '_')}.md"


def _overview() -> Iterator[str]:
    yield "# Settings\n"
    yield "`GROUP=OPTION` chooses an option of a group, `GROUP.SETTING=VALUE` changes one of its settings;"
    yield "`presel run --help GROUP` prints what these pages say.\n"
    yield "## Settings of the run\n"
    values = _root_values()
    yield from _settings(f"{SCHEMA}.Config", {key: values[key] for key in ("seed", "budget", "until")}, "")
    yield "\n## Groups\n"
    yield "| group | decides | default | options |"
    yield "| --- | --- | --- | --- |"
    for group, meaning in _groups().items():
        page = _path(group).removeprefix("reference/")
        default = f"`{defaults()[group]}`" if group in defaults() else "–"
        yield f"| [`{group}`]({page}) | {_cell(meaning)} | {default} | {len(options(group))} |"


def _root_values() -> dict[str, Any]:
    return Option("", config_folder() / "config.yaml").settings


def _group_page(group: str, meaning: str) -> Iterator[str]:
    yield f"# {group}\n\n{meaning}\n"
    yield "| option | meaning |"
    yield "| --- | --- |"
    for name, option in options(group).items():
        default = " (default)" if defaults().get(group) == name else ""
        yield f"| [`{name}`](#{name}){default} | {_cell(option.meaning)} |"
    for name, option in options(group).items():
        yield f"\n## `{group}={name}` {{#{name}}}\n\n{option.meaning}\n"
        settings = {key: value for key, value in option.settings.items() if key != "_target_"}
        if group not in ("experiment", "published"):
            if "_target_" in option.settings:
                yield f"Class: `{option.target}`.\n"
            if settings:
                yield from _settings(option.target, settings, f"{group}.".replace("/", "."), option)
        yield f'\n??? note "conf/{group}/{name}.yaml"\n\n    ```yaml'
        yield from (f"    {line}".rstrip() for line in option.file.read_text("utf-8").splitlines())
        yield "    ```"


def _settings(
    target: str, values: dict[str, Any], prefix: str, option: Option | None = None
) -> Iterator[str]:
    meanings = fields_of(target)
    types = get_type_hints(resolve_name(target), include_extras=True)
    yield "| setting | type | value | meaning |"
    yield "| --- | --- | --- | --- |"
    for key, value in values.items():
        meaning = re.sub(r"\bNone\b", "`null`", meanings[key])
        shown = _value(value)
        if option and (source := option.reference(key)):
            shown = f"that of [`{source}`]({source.partition('.')[0]}.md)"
        yield f"| `{prefix}{key}` | {_cell(_words(types[key]))} | {shown} | {_cell(meaning)} |"


def _value(value: Any) -> str:
    if value == "???":
        return "must be set"
    text = json.dumps(value, ensure_ascii=False).strip('"')
    return "see the file" if len(text) > 60 else f"`{_cell(text)}`"


def _words(kind: Any) -> str:
    """A type in words, with the range that it allows."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind in _WORDS:
        return _WORDS[kind]
    if origin is Annotated:
        return _words(parts[0]) + "".join(_ranges(parts[1:]))
    if origin in (Union, UnionType):
        return " or ".join(map(_words, parts))
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is list:
        return f"list of {_words(parts[0])}"
    if origin is dict:
        return f"mapping of {_words(parts[0])} to {_words(parts[1])}"
    return str(kind.__name__).lower() if kind.__module__ == "pathlib" else f"`{kind.__name__}`"


def _ranges(constraints: tuple[Any, ...]) -> Iterator[str]:
    for constraint in constraints:
        if isinstance(constraint, FieldInfo):
            for one in constraint.metadata:
                yield from (f" {_SIGNS[name]} {getattr(one, name)}" for name in _SIGNS if hasattr(one, name))


def _cell(text: str) -> str:
    """Text inside a table."""
    return text.replace("|", r"\|").replace("<", "&lt;")


def _commands() -> Iterator[str]:
    yield "# Commands\n\nWhat each command prints with `--help`.\n"
    yield from _help("presel", "presel.cli:main")
    for command in COMMANDS:
        yield from _help(f"presel {command}", f"presel.commands.{command}:main")


def _help(command: str, main: str) -> Iterator[str]:
    os.environ["COLUMNS"] = "100"
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        resolve_name(main)(["--help"])
    yield f"## {command}\n\n```text\n{printed.getvalue().rstrip()}\n```\n"

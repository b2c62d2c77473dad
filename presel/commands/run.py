"""`presel run`: starts Hydra, or prints every group, option and setting with its meaning."""

import json
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from presel.console.terminal import print_text
from presel.errors import PreselError
from presel.settings.options import SCHEMA, config_folders, defaults, fields_of, nearest, options

_HEAD = """\
usage: presel run [GROUP=OPTION …] [SETTING=VALUE …]

Chooses the images worth annotating, obtains their instructions, fine-tunes on them and evaluates.
Without arguments it does so on the built-in digit scenes.

  presel run strategy=random budget=0.1               another option of a group, another value of a setting
  presel run -m strategy=random,presel seed=0,1,2     a sweep over all combinations of values
  presel run experiment=quickstart                    a prepared study
  presel run --help strategy                          the options of a group and their settings
"""
_TAIL = """\
Messages, which `run.log` in the run's folder holds in full:
  -v, --verbose            show details and the warnings of libraries too
  -q, --quiet              show nothing but results, warnings and errors

Flags of Hydra, on which the configuration rests:
  -m, --multirun           sweep over values separated by commas
  --cfg job                print the composed configuration and stop; --resolve fills in references
  --info defaults-tree     print which files it is composed from; `--info config` and others
  --config-dir FOLDER      options of your own: FOLDER/strategy/mine.yaml is strategy=mine
  --hydra-help             all flags of Hydra"""
# Groups beside those of the schema.
_MORE_GROUPS = {"experiment": "Prepared studies; no default."}


def main(arguments: Sequence[str]) -> int:
    """Runs `presel run`, see `run_app`, or with `--help` anywhere prints the help."""
    # The help does without Hydra, which takes a while to import.
    if {"-h", "--help"}.isdisjoint(arguments):
        from presel.commands.hydra_app import run_app

        run_app(arguments)
    else:
        print_text(run_help(arguments))
    return 0


def run_help(arguments: Sequence[str]) -> str:
    """The text of `presel run --help`, or with the name of a group behind it, of that group.

    Args:
        arguments: Those of `presel run`.

    Raises:
        PreselError: If there is no such group.
    """
    folders = config_folders(arguments)
    keys = fields_of(f"{SCHEMA}.Config")
    groups = {key: keys[key] for key in defaults()} | _MORE_GROUPS
    asked = [
        one for one in arguments if not one.startswith("-") and "=" not in one and Path(one) not in folders
    ]
    if not asked:
        settings = [key for key in keys if key not in groups]
        lines = [_HEAD, "Settings of the run:", *(_entry(key, keys[key]) for key in settings), ""]
        lines.append("Groups and their options; * is the default:")
        for group, meaning in groups.items():
            lines += ["", _wrapped(f"{group}: {meaning}"), *_listed(group, folders)]
        return "\n".join([*lines, "", _TAIL])
    if asked[0] not in groups:
        raise PreselError(
            f"there is no group '{asked[0]}'{nearest(asked[0], list(groups))}; see `presel run --help`"
        )
    return "\n".join([_wrapped(f"{asked[0]}: {groups[asked[0]]}"), *_explained(asked[0], folders)])


def _listed(group: str, folders: Sequence[Path]) -> Iterator[str]:
    for name, option in options(group, folders).items():
        yield _entry(f"{'*' if defaults().get(group) == name else ' '} {name}", option.meaning)


def _explained(group: str, folders: Sequence[Path]) -> Iterator[str]:
    """Every option with its values, then what its settings mean, each meaning once."""
    meanings: dict[tuple[str, str], list[str]] = {}
    for name, option in options(group, folders).items():
        mark = " (default)" if defaults().get(group) == name else ""
        yield f"\n{_wrapped(f'{group}={name}{mark}: {option.meaning}')}"
        if group in _MORE_GROUPS:
            continue
        fields = fields_of(option.target)
        values = {key: value for key, value in option.settings.items() if key != "_target_"}
        if values:
            yield _wrapped("  ".join(f"{key}={_shown(value)}" for key, value in values.items()), "    ")
        for key in values:
            # Docstrings write None, YAML files null.
            meaning = re.sub(r"\bNone\b", "null", fields.get(key, ""))
            if reference := option.reference(key):
                meaning = f"Taken from {reference}; set that."
            meanings.setdefault((key, meaning), []).append(name)
    if meanings:
        yield "\nSettings:"
    keys = [key for key, _ in meanings]
    for (key, meaning), names in meanings.items():
        # Where options mean different things by one name.
        where = f"({', '.join(names)}) " if keys.count(key) > 1 else ""
        yield _entry(f"{group}.{key}", where + meaning)


def _shown(value: object) -> str:
    text = "{…}" if isinstance(value, dict) else json.dumps(value, ensure_ascii=False)
    return text.strip('"') if len(text) <= 60 else "…"


def _entry(name: str, meaning: str) -> str:
    if len(name) < 25:
        return _wrapped(meaning, f"  {name:<24} ")
    return f"  {name}\n{_wrapped(meaning, 27 * ' ')}"


def _wrapped(text: str, head: str = "") -> str:
    width = min(shutil.get_terminal_size().columns, 110)
    return textwrap.fill(text, width, initial_indent=head, subsequent_indent=" " * max(len(head), 4))

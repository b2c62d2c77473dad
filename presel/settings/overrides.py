"""Overrides of the command line: where Hydra's grammar takes a value apart, and how to quote it."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException

from presel.data.checks import kind_of
from presel.errors import PreselError
from presel.settings.options import (
    SCHEMA,
    Option,
    config_folder,
    config_folders,
    defaults,
    fields_of,
    nearest,
    options,
)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_QUOTED = re.compile(r"""(["']).*\1""")
# Settings that become paths without a component that checks their type.
_PATHS = frozenset({"paths.store", "paths.runs", "paths.answers"})
# Settings for which an empty name would mean the working directory.
_FOLDERS = _PATHS | {"pool.images", "evaluation.images", "hydra.run.dir", "hydra.sweep.dir"}
# Settings whose keys users name: tasks, kinds of prompts, columns.
_OPEN = frozenset({"by_task", "kinds", "columns", "metrics", "parameters", "arguments"})


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether arguments of `presel run` ask for a sweep, or name an experiment that is one."""
    if has_sweep_flag(arguments) or "hydra.mode=RUN" in arguments:
        return has_sweep_flag(arguments)
    known = options("experiment", config_folders(arguments))
    return any(known[name].sweeps for name in _experiments(parsed(arguments)) if name in known)


def has_sweep_flag(arguments: Sequence[str]) -> bool:
    """Whether `-m` is among the arguments."""
    return "-m" in arguments or "--multirun" in arguments


def quoted(override: str, sweep: bool = False) -> str:
    """An override as a shell takes it, quoted so that Hydra takes its value as it was written.

    Args:
        override: As in `pool.images=büro`.
        sweep: Whether commas separate the values of a sweep.
    """
    key, _, value = override.partition("=")
    if not sweep:
        return shlex.quote(f"{key}={quoted_value(value)}")
    return shlex.quote(f"{key}={_quoted_each(value)}")


def _quoted_each(values: str) -> str:
    return ",".join(one if _QUOTED.fullmatch(one) else quoted_value(one) for one in values.split(","))


def quoted_value(value: str) -> str:
    """A value as Hydra's grammar takes it for text."""
    # A backslash counts only before a quote and at the end.
    return '"' + re.sub(r'(\\*)("|\Z)', lambda at: 2 * at[1] + (at[2] and '\\"'), value) + '"'


def unreadable(override: str, sweep: bool = False) -> str:
    """Says what to write instead of an override that Hydra's grammar does not accept."""
    remedy = quoted(override, sweep)
    if found := re.fullmatch(r"(.*?=)\[([^\[\]{}]+)\]", override):
        remedy = shlex.quote(f"{found[1]}[{_quoted_each(re.sub(', *', ',', found[2]))}]")
    try:
        OverridesParser.create().parse_overrides(shlex.split(remedy) if "=" in override else [override])
    except HydraException:
        return f"cannot read the override '{override}'; write key=value, with a key of `presel run --help`"
    return (
        f"cannot read the override '{override}'; quote a value that has anything but letters a to z, digits "
        f"and -_./ in it: write {remedy}"
    )


def not_text(key: str, value: object, overrides: Sequence[str] = ()) -> str:
    """Says what to write where Hydra parsed a setting's value, meant as a name, as a number or the like."""
    written = [one for one in overrides if one.lstrip("+").partition("=")[0] == key]
    if written and "${" in written[0]:
        return f"{key} is {kind_of(value)}, not text; names of files may not have ${{ in them"
    remedy = quoted([*written, f"{key}={value}"][0], is_sweep(overrides))
    return f"{key} is {kind_of(value)}, not text; if it is a name, quote it: write {remedy}"


def check_overrides(overrides: Sequence[str]) -> None:
    """Checks that Hydra reads names as they were written; what it cannot parse, it reports itself.

    Args:
        overrides: The command line's, flags among them.

    Raises:
        PreselError: If a group has no option or a list of them, or group `published` an unknown one; if
            Hydra takes an option or a path of group `paths` for a number or the like, or strips the
            whitespace around the name of a file or folder; if a folder has no name; if a setting takes its
            value from another one; or if there is a control character, which Hydra's own messages would print
            to the terminal.
    """
    for override in filter(_CONTROL.search, overrides):
        raise PreselError(f"the argument {override!r} holds a control character; write it without")
    chosen = chosen_options(overrides)
    for key, override, value in parsed(overrides):
        if (decides := reference(key, chosen)) != key:
            raise PreselError(f"{key} takes its value from {decides}; set that")
        if key in _FOLDERS and value == "":
            raise PreselError(f"{key} is empty; name a folder, . for the working directory")
        if key in defaults() and override[0] == "+":
            raise PreselError(f"{override}: {key} has an option already; write it without the +")
        if key == "published" and override[0] != "~":
            _check_published(override, _values(value), list(options(key, config_folders(overrides))))
        for one in _values(value):
            if key in defaults() and (override[0] == "~" or one is None or isinstance(one, list)):
                raise PreselError(f"{override}: {key} takes exactly one option; write {key}=NAME")
            is_number = isinstance(one, bool | int | float)
            if (key in _PATHS and (is_number or one is None)) or (is_number and _is_group(key)):
                raise PreselError(not_text(key, one, overrides))
            if isinstance(one, list) and _is_group(key) and not all(isinstance(name, str) for name in one):
                raise PreselError(f"{override}: a list of options holds their names; write {key}=NAME")
        typed = override.partition("=")[2]
        path = typed.strip()
        if value == path != typed and os.access(typed, os.F_OK) and not os.access(path, os.F_OK):
            raise PreselError(f"{key}: Hydra strips the whitespace around '{path}'; write {quoted(override)}")


def _check_published(override: str, values: Sequence[Any], known: Sequence[str]) -> None:
    # Hydra passes over an option that does not exist, since the group is optional.
    for one in values:
        if one not in ([], *known):
            hint = nearest(str(one), known)
            choices = f"{', '.join(known)}, or write ~published for none"
            raise PreselError(f"{override}: there is no such option{hint}; choose one of {choices}")


def chosen_options(overrides: Sequence[str]) -> dict[str, list[Option]]:
    """The options that a run or sweep takes of each group: several where it sweeps over them.

    Args:
        overrides: The command line's, flags among them; what cannot be read is passed over.
    """
    folders = config_folders(overrides)
    names: dict[str, list[str]] = {group: [option] for group, option in defaults().items()}
    given = parsed(overrides)
    for name in _experiments(given):
        if name in (experiments := options("experiment", folders)):
            names |= experiments[name].choices
    names |= {key: list(map(str, _values(value))) for key, _, value in given if key in names}
    found: dict[str, list[Option]] = {}
    for group, wanted in names.items():
        known = options(group, folders)
        found[group] = [known[name] for name in wanted if name in known]
    return found


def reference(key: str, chosen: Mapping[str, Sequence[Option]]) -> str:
    """The setting that a key, such as `strategy.tau`, takes its value from in a chosen option, or the key."""
    group, _, name = key.partition(".")
    found = [option.reference(name) for option in chosen.get(group, [])]
    return next(filter(None, found), key)


def parsed(overrides: Sequence[str]) -> list[tuple[str, str, Any]]:
    """The key of every override that can be read, the override, and its value."""
    parser = OverridesParser.create()
    found = []
    for override in overrides:
        with suppress(HydraException):
            one = parser.parse_override(override)
            found.append((one.key_or_group, override, one.value()))
    return found


def _experiments(given: Sequence[tuple[str, str, Any]]) -> list[str]:
    """The experiments that parsed overrides name."""
    return [str(name) for key, _, value in given if key == "experiment" for name in _values(value)]


def _values(value: Any) -> list[Any]:
    """The values of a sweep over some, or the one value."""
    if isinstance(value, ChoiceSweep):
        return [one.text if isinstance(one, QuotedString) else one for one in value.list]
    return [value]


def _is_group(key: str) -> bool:
    return (config_folder() / key).is_dir()


def unknown_key(key: str, overrides: Sequence[str] = ()) -> str:
    """Says that there is no such setting, and which one of the options chosen by the overrides is nearest."""
    if key == "experiment" and (names := _experiments(parsed(overrides))):
        return (
            f"the file of experiment={names[0]} lacks the line `# @package _global_` at its beginning, "
            "without which Hydra takes its settings for those of a group; add it"
        )
    valid = list(fields_of(f"{SCHEMA}.Config"))
    chosen = chosen_options(overrides)
    for group, several in chosen.items():
        for option in several:
            valid += _keys(option.settings, f"{group}.")
    outer, _, name = key.rpartition(".")
    if outer.rpartition(".")[2] in _OPEN and outer in valid:
        return f"{outer} has no '{name}' to change; write +{key}=VALUE to add it"
    group, dot, _ = key.partition(".")
    command = f"presel run --help {group}" if dot and group in chosen else "presel run --help"
    hint = nearest(key, [one for one in valid if one != key])
    return f"there is no setting '{key}'{hint}; `{command}` lists them all"


def _keys(settings: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in settings.items():
        if key != "_target_":
            yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")

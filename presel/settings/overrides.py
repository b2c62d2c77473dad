"""Overrides of the command line: where Hydra's grammar takes a value apart, and how to quote it."""

import os
import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException

from presel.data.checks import kind_of
from presel.errors import PreselError
from presel.settings.paths import config_folder

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Settings that become paths without a component that checks their type.
_PATHS = frozenset({"paths.store", "paths.runs", "paths.answers"})
# Settings that would take the working directory for a folder that was not named.
_FOLDERS = _PATHS | {"pool.images", "evaluation.images"}


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether arguments of `presel run` ask for a sweep."""
    return "-m" in arguments or "--multirun" in arguments


def quoted(override: str, sweep: bool = False) -> str:
    """An override as a shell takes it, quoted so that Hydra takes its value as it was written.

    Args:
        override: As in `pool.images=büro`.
        sweep: Whether commas separate the values of a sweep.
    """
    key, _, value = override.partition("=")
    if not sweep:
        return shlex.quote(f"{key}={_quoted_value(value)}")
    values = [one if re.fullmatch(r"""(["']).*\1""", one) else _quoted_value(one) for one in value.split(",")]
    return shlex.quote(f"{key}={','.join(values)}")


def _quoted_value(value: str) -> str:
    # A backslash counts only before a quote and at the end.
    return '"' + re.sub(r'(\\*)("|\Z)', lambda at: 2 * at[1] + (at[2] and '\\"'), value) + '"'


def unreadable(override: str, sweep: bool = False) -> str:
    """Says what to write in the place of an override that Hydra's grammar does not take."""
    remedy = quoted(override, sweep)
    try:
        OverridesParser.create().parse_overrides(shlex.split(remedy) if "=" in override else [override])
    except HydraException:
        return f"cannot read the override '{override}'; write key=value, with a key of `presel run --help`"
    return (
        f"cannot read the override '{override}'; quote a value that has anything but letters a to z, digits "
        f"and -_./ in it: write {remedy}"
    )


def not_text(key: str, value: object, overrides: Sequence[str] = ()) -> str:
    """Says what to write where Hydra took a name for a number or the like.

    Args:
        key: The setting.
        value: What Hydra made of it.
        overrides: The command line's.
    """
    written = [one for one in overrides if one.lstrip("+").partition("=")[0] == key]
    if written and "${" in written[0]:
        return f"{key} is {kind_of(value)}, not text; names of files may not have ${{ in them"
    remedy = quoted([*written, f"{key}={value}"][0], is_sweep(overrides))
    return f"{key} is {kind_of(value)}, not text; if it is a name, quote it: write {remedy}"


def check_overrides(overrides: Sequence[str]) -> None:
    """Makes sure that Hydra reads names as they were written; what it cannot read at all is left to it.

    Args:
        overrides: The command line's, flags among them.

    Raises:
        PreselError: If Hydra takes an option or a path of group `paths` for a number or the like, or drops
            the blanks around the name of a file or folder; if a folder has no name; or if there is a control
            character, which Hydra's own messages would print to the terminal.
    """
    parser = OverridesParser.create()
    for override in overrides:
        if _CONTROL.search(override):
            raise PreselError(f"the argument {override!r} holds a control character; write it without")
        try:
            parsed = parser.parse_override(override)
        except HydraException:
            continue
        key, value, typed = parsed.key_or_group, parsed.value(), override.partition("=")[2]
        if key in _FOLDERS and value == "":
            raise PreselError(f"{key} is empty; name a folder, . for the working directory")
        for one in value.list if isinstance(value, ChoiceSweep) else [value]:
            is_number = isinstance(one, bool | int | float)
            if (key in _PATHS and (is_number or one is None)) or (is_number and _is_group(key)):
                raise PreselError(not_text(key, one, overrides))
            if isinstance(one, list) and _is_group(key) and not all(isinstance(name, str) for name in one):
                raise PreselError(f"{override}: a list of options holds their names; write {key}=NAME")
        name = typed.strip()
        if value == name != typed and os.access(typed, os.F_OK) and not os.access(name, os.F_OK):
            raise PreselError(f"{key}: Hydra drops the blanks around '{name}'; write {quoted(override)}")


def _is_group(key: str) -> bool:
    return (config_folder() / key).is_dir()

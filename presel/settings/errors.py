"""Errors of the configuration, told in one sentence with the nearest valid name."""

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)
from pydantic import ValidationError as ArgumentError
from yaml import YAMLError

from presel.data.checks import shown
from presel.settings.overrides import is_sweep, not_text, quoted, unreadable
from presel.settings.paths import config_folder

# What is raised for a mistake in the configuration.
MISTAKES = (HydraException, OmegaConfBaseException, YAMLError)
# What else Hydra fails with while it reads configuration files.
UNREADABLE = (OSError, ValueError, RecursionError)


def explain(error: BaseException, overrides: Sequence[str] = ()) -> str:
    """Says what is wrong with the configuration, and the remedy, in one sentence.

    Args:
        error: What Hydra, OmegaConf, YAML or a component raised; any other error speaks for itself.
        overrides: The command line's, flags among them.
    """
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, ArgumentError):
            return _argument(link, _full_key(chain), overrides)
        if isinstance(link, YAMLError):
            return _yaml(link)
        if isinstance(link, MissingConfigException):
            return _option(link)
        if isinstance(link, ConfigAttributeError | ConfigKeyError):
            return _key(_full_key(chain), overrides)
        if isinstance(link, ValidationError):
            return f"{_full_key(chain)}: {_first_line(link)}"
        if isinstance(link, OverrideParseException):
            return unreadable(str(link.override), is_sweep(overrides))
        if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'", str(link)):
            return (
                f"{several[1]} stands for several values; add -m to sweep over them, bracket a list, or "
                f"quote a name: write {quoted(several[1])}"
            )
        if isinstance(link, InterpolationResolutionError | GrammarParseError):
            return f"{_full_key(chain)}: {_first_line(link)}; names of files may not have ${{ in them"
    if isinstance(error, InstantiationException):
        return f"{_full_key(chain)}: {_first_line(chain[-1])}"
    if isinstance(error, OmegaConfBaseException):
        return f"{_full_key(chain)}: {_first_line(error)}"
    if isinstance(error, UNREADABLE):
        return f"the configuration cannot be read ({_first_line(error)}); YAML files hold settings, in UTF-8"
    return " ".join(str(error).split())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _full_key(chain: Iterable[BaseException]) -> str:
    for link in chain:
        key = getattr(link, "full_key", None) or next(iter(re.findall(r"full_key: (\S+)", str(link))), None)
        if key:
            return str(key)
    return "the configuration"


def _yaml(error: YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}: line {mark.line + 1}" if mark else "the configuration"
    reason = getattr(error, "problem", None) or _first_line(error)
    return f"{where}: the YAML cannot be read ({shown(reason)}); mend it"


def _argument(error: ArgumentError, group: str, overrides: Sequence[str]) -> str:
    first = error.errors()[0]
    key = ".".join([group, *map(str, first["loc"])])
    if first["type"] == "unexpected_keyword_argument":
        return _key(key, overrides)
    value = first["input"]
    if first["type"] in ("path_type", "string_type"):
        return not_text(key, value, overrides)
    is_one = first["loc"] and first["type"] != "missing" and not isinstance(value, dict)
    given = f" (it is {shown(value)})" if is_one else ""
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}{given}"


def _option(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = [str(option) for option in error.options or []]
    hint = _nearest(name, options)
    return f"{group}={name}: there is no such option{hint}; choose one of {', '.join(options)}"


def _key(key: str, overrides: Sequence[str]) -> str:
    hint = _nearest(key, _settings(overrides))
    return f"there is no setting '{key}'{hint}; `presel run --help` lists them all"


def _settings(overrides: Sequence[str]) -> list[str]:
    """All settings there are where the command line's options of groups are chosen."""
    options = [one for one in overrides if (config_folder() / f"{one.replace('=', '/', 1)}.yaml").is_file()]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return list(_leaves(OmegaConf.to_container(compose("config", options))))


def _leaves(node: Any, path: str = "") -> Iterator[str]:
    if not isinstance(node, dict):
        yield path
        return
    if path:
        yield path
    for key, value in node.items():
        if key not in ("_target_", "hydra"):
            yield from _leaves(value, f"{path}.{key}" if path else key)


def _nearest(name: str, valid: list[str]) -> str:
    found = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]

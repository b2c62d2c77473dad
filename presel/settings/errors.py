"""Errors of the configuration, each explained in one sentence with the nearest valid name."""

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
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
from presel.settings.options import nearest
from presel.settings.overrides import (
    chosen_options,
    is_sweep,
    not_text,
    quoted,
    reference,
    unknown_key,
    unreadable,
)
from presel.settings.schema import RANGES

# Raised for an invalid configuration.
MISTAKES = (HydraException, OmegaConfBaseException, YAMLError)
# Raised besides by Hydra for configuration files that it cannot read.
UNREADABLE = (OSError, ValueError, RecursionError)
# What pydantic appends to a location for each of several types that it tried, such as `literal['auto']`.
_TYPE = re.compile(r"[a-z-]+\[.*\]|constrained-[a-z]+|str|int|float|bool")


def explain(error: BaseException, overrides: Sequence[str] = (), *, may_sweep: bool = False) -> str:
    """Says in one sentence what is wrong with the configuration, and how to correct it.

    Args:
        error: Raised by Hydra, OmegaConf, YAML or a component; of any other, the message is returned.
        overrides: The command line's, flags among them.
        may_sweep: Whether the command can sweep over values.
    """
    chain = _chain(error)
    key = _full_key(chain)
    for link in chain:
        match link:
            case ArgumentError():
                return _argument(link, key, overrides)
            case YAMLError():
                return _yaml(link)
            case MissingConfigException():
                return _option(link)
            case ConfigAttributeError() | ConfigKeyError():
                return unknown_key(key, overrides)
            case ValidationError():
                return f"{key}: {_first_line(link)}" + (
                    f"; it must be {RANGES[key][0]}" if key in RANGES else ""
                )
            case OverrideParseException():
                return unreadable(str(link.override), is_sweep(overrides))
        if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'", str(link)):
            remedy = "add -m to sweep over them" if may_sweep else "give one"
            return (
                f"{several[1]} stands for several values; {remedy}, bracket a list, or quote a name: write "
                f"{quoted(several[1])}"
            )
        if missing := re.search(r"Environment variable '(\w+)' not found", str(link)):
            return (
                f"{key}: the environment variable {missing[1]} is not set; set it where you run the command"
            )
        if isinstance(link, InterpolationResolutionError | GrammarParseError):
            return f"{key}: {_first_line(link)}; names of files may not have ${{ in them"
    if isinstance(error, InstantiationException):
        return f"{key}: {_first_line(chain[-1])}"
    if isinstance(error, OmegaConfBaseException):
        return f"{key}: {_first_line(error)}"
    if isinstance(error, UNREADABLE):
        return f"the configuration cannot be read ({_first_line(error)}); YAML files hold settings, in UTF-8"
    return " ".join(str(error).split())


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and its causes, which OmegaConf makes a cycle while a debugger or coverage traces."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain


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
    return f"{where}: the YAML cannot be read ({shown(reason)}); correct it"


def _argument(error: ArgumentError, group: str, overrides: Sequence[str]) -> str:
    """Explains an argument that a component refuses."""
    errors = error.errors()
    first = errors[0]
    field = _field(first["loc"])
    key = reference(".".join([group, *map(str, field)]), chosen_options(overrides))
    if first["type"] == "unexpected_keyword_argument":
        return unknown_key(key, overrides)
    value = first["input"]
    # Of a setting of several types, why each of them refuses the value.
    reasons = [one["msg"] for one in errors if _field(one["loc"]) == field]
    if first["type"] in ("path_type", "string_type") and len(reasons) == 1:
        return not_text(key, value, overrides)
    is_one = field and first["type"] != "missing" and (len(reasons) > 1 or not isinstance(value, dict))
    given = f" (it is {shown(value)})" if is_one else ""
    message = reasons[0].removeprefix("Value error, ")
    if len(reasons) > 1:
        accepted = (re.sub(r"^Input should be |, unable to parse .*", "", one) for one in reasons)
        message = f"input should be {' or '.join(accepted)}"
    return f"{key}: {message[0].lower()}{message[1:]}{given}"


def _field(location: Sequence[int | str]) -> tuple[int | str, ...]:
    """Where a refused value stands: pydantic's location up to the type among several that it tried."""
    return tuple(takewhile(lambda part: not _TYPE.fullmatch(str(part)), location))


def _option(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = [str(option) for option in error.options or []]
    return (
        f"{group}={name}: there is no such option{nearest(name, options)}; choose one of {', '.join(options)}"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]

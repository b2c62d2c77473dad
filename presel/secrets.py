"""Keys come from the environment and are never written: whatever holds one is refused before it is saved."""

import os
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException

from presel.errors import PreselError

_NAMES_OF_KEYS = re.compile(
    r"""
    key | token
    | .* (?: (?: api | access | secret | private | subscription ) [_-]? key
           | (?: api | access | auth | bearer | hf | session ) [_-]? token
           | secret | password | credentials? | authorization )
    """,
    re.IGNORECASE | re.VERBOSE,
)


def is_variable(name: str) -> bool:
    """Whether this is the name of an environment variable: set, or in capitals, which keys hardly are."""
    return name in os.environ or re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) is not None


def has_credentials(address: str) -> bool:
    """Whether there is more in an address than where a server is: a user, a password or a query."""
    return "@" in address or "?" in address


def named_like_a_key(name: str) -> bool:
    """Whether a setting or a header of this name would hold a key, as `api_key` and `Authorization` do."""
    return _NAMES_OF_KEYS.fullmatch(name) is not None


def refuse_keys(overrides: Sequence[str]) -> None:
    """Makes sure that no override holds a key, because Hydra writes overrides down.

    Args:
        overrides: The command line's, as Hydra takes them.

    Raises:
        PreselError: If one does; it names the setting and does not repeat the key.
    """
    parser = OverridesParser.create()
    value: Any
    for override in overrides:
        setting, _, text = override.lstrip("+~").partition("=")
        try:
            value = parser.parse_override(override).value()
        # Hydra refuses it later, and repeats it: what is plainly a key is not left to that.
        except HydraException:
            value = text
        if _holds_key(setting, value):
            raise PreselError(
                f"{setting}: a key may not stand on the command line, which every run writes down; put it in "
                "an environment variable, and that variable's name in instructions.key_variable"
            )


def _holds_key(setting: str, value: Any) -> bool:
    name = setting.rpartition(".")[2]
    match value:
        case None | "":
            return False
        case QuotedString():
            return _holds_key(name, value.text)
        case ChoiceSweep():
            return _holds_key(name, value.list)
        case list():
            return any(_holds_key(name, one) for one in value)
        case _ if named_like_a_key(name):
            return True
        case dict():
            return any(_holds_key(str(key), one) for key, one in value.items())
    if name == "key_variable":
        return not is_variable(str(value))
    return name == "base_url" and has_credentials(str(value))

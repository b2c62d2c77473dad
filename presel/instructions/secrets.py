"""Keys come from the environment, are never written, and go only where the user says.

Whatever holds a key is refused before it is saved. A configuration file, which may be someone else's, cannot
choose the server that a key is sent to.
"""

import os
import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException

from presel.errors import PreselError

# Where a key goes without a word on the command line.
_OPENAI = {
    "instructions.base_url": "https://api.openai.com/v1",
    "instructions.key_variable": "OPENAI_API_KEY",
}
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
    """Whether there is more in an address than where a server is: a user, a query or a fragment."""
    return not {"@", "?", "#"}.isdisjoint(address)


def named_like_a_key(name: str) -> bool:
    """Whether a setting or a header of this name would hold a key, as `api_key` and `Authorization` do."""
    return _NAMES_OF_KEYS.fullmatch(name) is not None


def check_destination(base_url: str, key_variable: str | None, overrides: Sequence[str]) -> None:
    """Makes sure that images and a key go to OpenAI, to this machine, or where the command line says.

    Without a key as well: settings sent along may hold environment variables (`${oc.env:…}`).

    Args:
        base_url: What `instructions.base_url` is.
        key_variable: What `instructions.key_variable` is.
        overrides: The command line's, as Hydra takes them.

    Raises:
        PreselError: If a configuration file names the server or the key's variable.
    """
    if is_this_machine(base_url):
        return
    settings = {"instructions.base_url": base_url}
    sent = "images"
    if key_variable is not None:
        settings["instructions.key_variable"] = key_variable
        sent = f"the key in {key_variable}"
    needed = {name: value for name, value in settings.items() if value.rstrip("/") != _OPENAI[name]}
    if not needed.keys() <= _given(overrides):
        wanted = " ".join(f"{name}={value}" for name, value in needed.items())
        raise PreselError(
            f"instructions: a configuration file may not send {sent} to {base_url}; "
            f"if you trust it, add {wanted} to the command line"
        )


def check_environment(variables: Iterable[str], overrides: Sequence[str]) -> None:
    """Makes sure that no configuration file sets environment variables, such as keys and proxies.

    Args:
        variables: Those that Hydra sets, by `hydra.job.env_set`.
        overrides: The command line's, as Hydra takes them.

    Raises:
        PreselError: If a configuration file sets one.
    """
    given = _given(overrides)
    for name in variables:
        if given.isdisjoint({"hydra.job.env_set", f"hydra.job.env_set.{name}"}):
            raise PreselError(
                f"hydra.job.env_set.{name}: a configuration file may not set environment variables; set it "
                "where you run the command"
            )


def is_this_machine(address: str) -> bool:
    """Whether an address is one of this machine's own."""
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _given(overrides: Sequence[str]) -> set[str]:
    """The settings that overrides change."""
    return {override.lstrip("+").partition("=")[0] for override in overrides}


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

"""API keys are read from the environment, never written to disk, and sent only where the user says.

A key in an override or in a configuration file is refused before any work, and before a run saves it. A
configuration file, which may be downloaded, cannot choose the server that a key is sent to.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException

from presel.errors import PreselError

# The destination of a key that need not be confirmed on the command line.
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
# How the keys of well-known services look.
_IS_KEY = re.compile(
    r"(?=.*[A-Z])(?=.*[a-z])(?=.*[0-9])(sk-[\w-]{20,}|hf_[A-Za-z0-9]{30,}|AIza[\w-]{35}|(gsk_|xai-)\w{40,})"
)
# Settings whose keys users name, by a task, a kind of prompt or a column.
_NAMED_BY_USERS = {"by_task", "kinds", "columns", "metrics", "task_patterns", "groups"}
_NAMES_IN_TEXT = re.compile(r"([\w-]+)[\"'\\]*\s*:")


def is_variable(name: str) -> bool:
    """Whether this names an environment variable: it is set, or in capitals, as keys hardly ever are."""
    return name in os.environ or re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) is not None


def has_credentials(address: str) -> bool:
    """Whether a URL contains more than a server and a path: a user, a query or a fragment."""
    return not {"@", "?", "#"}.isdisjoint(address)


def named_like_a_key(name: str) -> bool:
    """Whether a setting or a header of this name would contain a key, as `api_key` and `Authorization`."""
    return _NAMES_OF_KEYS.fullmatch(name) is not None


def check_destination(base_url: str, key_variable: str | None, overrides: Sequence[str]) -> None:
    """Checks that images and a key go to OpenAI, to this machine, or where the command line says.

    Applies without a key too: the settings of a request may contain environment variables (`${oc.env:…}`).

    Raises:
        PreselError: If a configuration file chooses the server or the key's variable.
    """
    if is_this_machine(base_url):
        return
    settings = {"instructions.base_url": base_url}
    sent = "images"
    if key_variable is not None:
        settings["instructions.key_variable"] = key_variable
        sent = f"the key in {key_variable}"
    needed = {name: value for name, value in settings.items() if value.rstrip("/") != _OPENAI[name]}
    if not needed.keys() <= changed_settings(overrides):
        wanted = " ".join(f"{name}={value}" for name, value in needed.items())
        raise PreselError(
            f"instructions: a configuration file may not send {sent} to {base_url}; "
            f"if you trust it, add {wanted} to the command line"
        )


def check_environment(variables: Iterable[str], overrides: Sequence[str]) -> None:
    """Checks that no configuration file sets environment variables (`hydra.job.env_set`), such as proxies.

    Raises:
        PreselError: If a configuration file sets one.
    """
    given = changed_settings(overrides)
    for name in variables:
        if given.isdisjoint({"hydra.job.env_set", f"hydra.job.env_set.{name}"}):
            raise PreselError(
                f"hydra.job.env_set.{name}: a configuration file may not set environment variables; set it "
                "where you run the command"
            )


def is_this_machine(address: str) -> bool:
    """Whether a URL points to this machine."""
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def changed_settings(overrides: Sequence[str]) -> set[str]:
    """The settings that overrides change."""
    return {override.lstrip("+").partition("=")[0] for override in overrides}


def refuse_keys(overrides: Sequence[str]) -> None:
    """Checks that no override contains a key, because Hydra saves all overrides.

    Raises:
        PreselError: If one does; the message names the setting and does not quote the key.
    """
    parser = OverridesParser.create()
    value: Any
    for override in overrides:
        setting, _, text = override.lstrip("+~").partition("=")
        try:
            value = parser.parse_override(override).value()
        # Hydra would reject it later with a message that quotes it, key included.
        except HydraException:
            value = text
        if holds_key(setting, value):
            raise PreselError(
                f"{setting}: a key may not be given on the command line, which every run saves; put it into "
                "an environment variable, and that variable's name into instructions.key_variable"
            )


def refuse_saved_keys(config: Mapping[str, Any]) -> None:
    """Checks that no setting contains a key, whichever configuration file it comes from.

    Args:
        config: Settings by group, interpolations unresolved.

    Raises:
        PreselError: If one does; the message names the setting and does not quote the key.
    """
    for group, settings in config.items():
        for name, value in settings.items() if isinstance(settings, Mapping) else ():
            if holds_key(name, value):
                raise PreselError(
                    f"{group}.{name}: a configuration file may not hold a key, since every run saves its "
                    "settings; put it into an environment variable, and that variable's name into "
                    "instructions.key_variable"
                )


def holds_key(setting: str, value: Any) -> bool:
    """Whether a setting, or one inside its value, would contain a key."""
    outer, _, name = setting.rpartition(".")
    # The names of tasks and columns are the user's: a task may be named `key`.
    if outer.rpartition(".")[2] in _NAMED_BY_USERS:
        name = ""
    match value:
        case None | "":
            return False
        case QuotedString():
            return holds_key(name, value.text)
        case ChoiceSweep():
            return holds_key(name, value.list)
        case list():
            return any(holds_key(name, one) for one in value)
        case _ if named_like_a_key(name):
            return True
        case dict():
            return any(holds_key(f"{name}.{key}", one) for key, one in value.items())
        case str() if value.startswith("${"):
            return False
        case str() if _IS_KEY.fullmatch(value):
            return True
        case str() if value.startswith(("{", "[")) and name not in _NAMED_BY_USERS:
            # A mapping as text, with quoted names, say.
            return any(map(named_like_a_key, _NAMES_IN_TEXT.findall(value)))
    if name == "key_variable":
        return not is_variable(str(value))
    return name in ("base_url", "tracking_uri") and has_credentials(str(value))

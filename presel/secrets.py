"""Keys come from the environment and are never written: whatever holds one is refused before it is saved."""

import re
from collections.abc import Sequence

from presel.errors import PreselError

_NAMES_OF_KEYS = re.compile(r"(api_?)?key|(access_?)?token|secret|password|authorization", re.IGNORECASE)


def is_variable(name: str) -> bool:
    """Whether this can be the name of an environment variable; keys of services hardly ever can."""
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None


def has_credentials(address: str) -> bool:
    """Whether there is more in an address than where a server is: a user, a password or a query."""
    return "@" in address or "?" in address


def refuse_keys(overrides: Sequence[str]) -> None:
    """Makes sure that no override holds a key, because Hydra writes overrides down.

    Args:
        overrides: The command line's, as Hydra takes them.

    Raises:
        PreselError: If one does; it names the setting and does not repeat the key.
    """
    for override in overrides:
        setting, _, value = override.lstrip("+~").partition("=")
        if _holds_key(setting.rpartition(".")[2], value.strip("'\" ")):
            raise PreselError(
                f"{setting}: a key may not stand on the command line, which every run writes down; put it in "
                "an environment variable, and that variable's name in instructions.key_variable"
            )


def _holds_key(name: str, value: str) -> bool:
    if name == "key_variable":
        return value != "null" and not is_variable(value)
    if name == "base_url":
        return has_credentials(value)
    return bool(value) and _NAMES_OF_KEYS.fullmatch(name) is not None

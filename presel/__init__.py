"""PreSel: choose which images to annotate before any instruction is written."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from presel.api import select

__version__ = "0.1.0"

__all__ = ["__version__", "select"]

# Where the public names are defined. Each is imported when it is first used, so that `presel --help` and
# errors in settings do not wait for NumPy and pandas.
_MODULES = {"select": "presel.api"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'presel' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)

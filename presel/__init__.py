"""PreSel: choose which images to annotate before any instruction is written."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from presel.api import compose, run, select
    from presel.errors import Paused, PreselError
    from presel.runs import RunRecord, load_run

__version__ = "0.1.0"

__all__ = ["Paused", "PreselError", "RunRecord", "__version__", "compose", "load_run", "run", "select"]

# Where the public names are defined. Each is imported when it is first used, so that `presel --help` and
# errors in settings do not wait for NumPy and pandas.
_MODULES = {
    "Paused": "presel.errors",
    "PreselError": "presel.errors",
    "RunRecord": "presel.runs",
    "compose": "presel.api",
    "load_run": "presel.runs",
    "run": "presel.api",
    "select": "presel.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'presel' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)

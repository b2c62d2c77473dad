"""PreSel: choose which images to annotate before any instruction is written."""

from presel.api import select

__version__ = "0.1.0"

__all__ = ["__version__", "select"]

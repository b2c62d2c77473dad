"""Provenance of a result: versions of packages, git commit of this code."""

import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_MODEL_PACKAGES = ["torch", "transformers", "peft", "pytorch-lightning"]
_DATA_PACKAGES = ["numpy", "scikit-learn", "faiss-cpu", "pandas", "pillow"]


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results may depend on."""
    found = {"python": platform.python_version()}
    for package in ("presel", *_MODEL_PACKAGES, *_DATA_PACKAGES):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@cache
def git_commit() -> str | None:
    """The commit this code was run from, or None outside a git checkout of it."""
    here = Path(__file__)

    def git(*command: str) -> str:
        asked = ["git", "-C", str(here.parent), *command]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Installed into an environment inside another project's checkout, this file is not tracked there.
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None

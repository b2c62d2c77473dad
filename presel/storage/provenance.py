"""Provenance of a result: versions of packages, git commit of this code."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_REPORTED_PACKAGES = [
    "presel",
    "torch",
    "transformers",
    "peft",
    "pytorch-lightning",
    "numpy",
    "scikit-learn",
    "faiss-cpu",
    "pandas",
    "pillow",
]


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results may depend on."""
    found = {"python": platform.python_version()}
    for package in _REPORTED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str | None:
    """The commit this code was run from, or None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None

"""The locks: every file that pip downloads has a hash, and together they hold what pyproject.toml names."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
TORCH, TORCH_CPU, RUN, DEV = (
    ROOT / f"requirements{name}.lock" for name in ("-torch", "-torch-cpu", "", "-dev")
)
DEV_EXTRAS = ("sources", "sweep", "wandb", "ray", "docs", "dev")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(lock: Path, everywhere: bool = False) -> dict[str, tuple[Version, int]]:
    """Version and number of hashes of each package, or of each that is installed on all systems."""
    found = {}
    for entry in re.split(r"\n(?=\S)", lock.read_text()):
        if not entry.startswith("#"):
            requirement = Requirement(entry.split(" \\\n")[0])
            if everywhere and requirement.marker is not None:
                continue
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            found[canonicalize_name(requirement.name)] = (Version(pin.version), entry.count("--hash=sha256:"))
    return found


@pytest.mark.parametrize("lock", [TORCH, TORCH_CPU, RUN, DEV], ids=lambda lock: lock.name)
def test_every_pin_has_a_hash_and_is_no_prerelease(lock: Path) -> None:
    for name, (version, hashes) in pins(lock).items():
        assert hashes, name
        assert not version.is_prerelease, name


@pytest.mark.parametrize("torch", [TORCH, TORCH_CPU], ids=lambda lock: lock.name)
def test_the_locks_agree_with_each_other(torch: Path) -> None:
    run = pins(RUN)
    for name, pin in pins(torch).items():
        assert run.get(name, pin) == pin


def test_what_the_project_needs_is_in_its_lock_and_no_more_in_that_of_a_run() -> None:
    extras = PROJECT["optional-dependencies"]
    run, dev = pins(TORCH_CPU) | pins(RUN), pins(DEV)
    for lock, wanted in (
        (run, PROJECT["dependencies"] + extras["cpu"]),
        (dev, [one for name in DEV_EXTRAS for one in extras[name]]),
    ):
        for requirement in map(Requirement, wanted):
            version, _ = lock[canonicalize_name(requirement.name)]
            assert version in requirement.specifier, requirement
    assert not (pins(TORCH_CPU, everywhere=True) | pins(RUN, everywhere=True)).keys() & dev.keys()

"""Where the package keeps its files."""

from pathlib import Path


def config_folder() -> Path:
    """The folder `conf`: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"

"""Copies or links of the selected image files in an export."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from presel.console import progress
from presel.data.checks import check_read_back
from presel.errors import PreselError


def check_exportable(source: Path, images: Sequence[str]) -> None:
    """Checks that images still exist, inside their folder `source`.

    Raises:
        PreselError: If one does not.
    """
    files = [check_read_back(source, image, "the run") for image in images]
    missing = [image for image, file in zip(images, files, strict=True) if not file.is_file()]
    if missing:
        raise PreselError(
            f"{source / missing[0]}: the file no longer exists ({len(missing)} of {len(images)} images "
            "are missing); restore the images"
        )


def place_images(source: Path, images: Sequence[str], target: Path, how: str) -> None:
    """Copies or links image files from one folder to another, under the same paths.

    Args:
        source: The image folder.
        images: Paths relative to it, checked by `check_exportable`.
        target: The other folder.
        how: A key of `IMAGE_MODES`.

    Raises:
        PreselError: If a link cannot be made.
    """
    # Once each, however records write its path.
    images = list(dict.fromkeys(map(os.path.normpath, images)))
    with progress(f"{len(images):,} images, {how}", len(images)) as advance:
        for image in images:
            (target / image).parent.mkdir(parents=True, exist_ok=True)
            IMAGE_MODES[how](source / image, target / image)
            advance(1)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source.resolve())
    except OSError as error:
        raise PreselError(
            f"{source}: it cannot be linked into the export ({error.strerror}); use --images copy"
        ) from error


# Hard links, because a pool refuses symbolic links that leave its image folder.
IMAGE_MODES: dict[str, Callable[[Path, Path], object]] = {"copy": shutil.copy2, "link": _link}

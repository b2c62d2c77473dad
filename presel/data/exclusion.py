"""Records that a user's file excludes from a pool, by id or by pattern."""

import re
from fnmatch import translate
from pathlib import Path

from presel.data.checks import check_file, shown
from presel.data.listing import Listing
from presel.errors import PreselError

_COMMENT = "#"
_WILDCARDS = frozenset("*?[")


def without_excluded(listing: Listing, file: Path) -> Listing:
    """Leaves out the records that a file names, and lists them as `excluded`.

    Each line of the file is the id of a record, the path of an image, or a pattern of either, in which `*`
    stands for any characters (also `/`), `?` for one, and `[ab]` for one of those. Of a record with several
    images, one that matches suffices. Blank lines, and those that begin with `#`, are skipped.

    Raises:
        PreselError: If the file cannot be read, a line matches nothing, or no image is left.
    """
    lines = _lines(file)
    named: set[str] = set()
    names = _names(listing)
    unmatched = []
    for number, line in lines:
        if line in names:
            found = {line}
        elif not _WILDCARDS.isdisjoint(line):
            found = set(filter(re.compile(translate(line)).fullmatch, names))
        else:
            found = set()
        if not found:
            unmatched.append((number, line))
        named |= found
    if unmatched:
        number, line = unmatched[0]
        raise PreselError(
            f"{file}: {len(unmatched)} of its {len(lines)} lines match no record of the pool (first: line "
            f"{number}, {shown(line)}); write ids, paths of images or patterns of either, or remove them"
        )
    excluded = [item for item in listing.items if not named.isdisjoint((item.id, *item.images))]
    if excluded and len(excluded) == len(listing.items):
        raise PreselError(f"{file}: it excludes all {len(excluded):,} images of the pool; leave some")
    ids = {item.id for item in excluded}
    return listing._replace(
        items=[item for item in listing.items if item.id not in ids],
        kept=[name for name in listing.kept if name not in named],
        excluded=excluded,
    )


def _names(listing: Listing) -> set[str]:
    """Everything that a line may match."""
    names = set(listing.kept)
    for item in listing.items:
        names.update((item.id, *item.images))
    return names


def _lines(file: Path) -> list[tuple[int, str]]:
    """The lines that name something, with their numbers from 1.

    Raises:
        PreselError: If there is none, or the file cannot be read.
    """
    check_file(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PreselError(f"{file}: it is not text in UTF-8 ({error.reason}); save it as UTF-8") from error
    numbered = enumerate(text.split("\n"), start=1)
    lines = [(number, line) for number, line in numbered if line.strip() and line[0] != _COMMENT]
    if not lines:
        raise PreselError(f"{file}: it names no record; write an id or a pattern on each line")
    return lines

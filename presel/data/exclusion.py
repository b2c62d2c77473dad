"""Records that a user's file excludes from a pool, by id or by pattern."""

import hashlib
import re
from bisect import bisect_left, bisect_right
from fnmatch import translate
from glob import escape
from pathlib import Path

from presel.data.checks import check_file, shown
from presel.data.listing import Listing
from presel.errors import PreselError

_COMMENT = "#"
_WILDCARDS = frozenset("*?[")


def without_excluded(listing: Listing, file: Path) -> Listing:
    """Leaves out the records that a file names, and lists them as `excluded`.

    Each line of the file is the id of a record; or, where no id is spelled so, the path of an image; or a
    pattern of either, in which `*` stands for any characters (also `/`), `?` for one, and `[ab]` for one of
    those. Of a record with several images, one that matches suffices. Blank lines, and those that begin with
    `#`, are skipped; in all others every character counts, so that there are no comments behind a name.

    Raises:
        PreselError: If the file cannot be read, a line matches nothing, or no image is left.
    """
    lines = _lines(file)
    ids = {item.id for item in listing.items}.union(listing.kept)
    paths = {path for item in listing.items for path in item.images}
    in_order = sorted(ids | paths)
    named_ids: set[str] = set()
    named_paths: set[str] = set()
    unmatched = []
    for number, line in lines:
        if line in ids:
            named_ids.add(line)
        elif line in paths:
            named_paths.add(line)
        elif found := _matching(line, in_order):
            named_ids |= found
            named_paths |= found
        else:
            unmatched.append((number, line))
    if unmatched:
        number, line = unmatched[0]
        raise PreselError(
            f"{file}: {len(unmatched)} of its {len(lines)} lines match no record of the pool (first: line "
            f"{number}, {shown(line)}); write ids, paths of images or patterns of either, or remove them"
        )
    excluded = [
        item for item in listing.items if item.id in named_ids or not named_paths.isdisjoint(item.images)
    ]
    if excluded and len(excluded) == len(listing.items):
        raise PreselError(f"{file}: it excludes all {len(excluded):,} images of the pool; leave some")
    left_out = {item.id for item in excluded}
    return listing._replace(
        items=[item for item in listing.items if item.id not in left_out],
        kept=[name for name in listing.kept if name not in named_ids],
        excluded=excluded,
    )


def exclusion_key(file: Path) -> str:
    """A digest of what a file names, whatever its comments and the order of its lines.

    Raises:
        PreselError: If it names nothing, or cannot be read.
    """
    names = sorted({line for _, line in _lines(file)})
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def line_for(name: str) -> str:
    """The line that excludes the record of this id."""
    return f"[{_COMMENT}]{escape(name[1:])}" if name.startswith(_COMMENT) else name


def _matching(pattern: str, names: list[str]) -> set[str]:
    """Those of the sorted names that match a pattern; none if it has no wildcard."""
    first = next((place for place, letter in enumerate(pattern) if letter in _WILDCARDS), None)
    if first is None:
        return set()
    # Only names that begin as the pattern does, since a pool may have a million and a file many patterns.
    start = bisect_left(names, pattern[:first], key=lambda name: name[:first])
    end = bisect_right(names, pattern[:first], key=lambda name: name[:first])
    return set(filter(re.compile(translate(pattern)).fullmatch, names[start:end]))


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

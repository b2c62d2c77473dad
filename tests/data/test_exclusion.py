"""Records that a file of ids and patterns excludes from a pool."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.data.exclusion import line_for, without_excluded
from presel.data.image_folder import ImageFolder
from presel.data.listing import Item, Listing
from presel.errors import PreselError
from presel.storage.stage import identity
from tests.pictures import two_kinds

LISTING = Listing(
    [
        Item("1", "coco/a.jpg", "vqa"),
        Item("[2]", "coco/b.jpg", "vqa", ("vg/c.jpg",)),
        Item("3", "vg/d.jpg", "ocr"),
    ],
    kept=["chat 1", "chat 2"],
)


def left(tmp_path: Path, *lines: str) -> list[str]:
    """Ids that are left, those without an image too."""
    (tmp_path / "exclude.txt").write_bytes("\r\n".join(lines).encode())
    listing = without_excluded(LISTING, tmp_path / "exclude.txt")
    assert {item.id for item in (*listing.items, *listing.excluded)} == {"1", "[2]", "3"}
    return [*(item.id for item in listing.items), *listing.kept]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["1"], ["[2]", "3", "chat 1", "chat 2"]),
        # An id counts as it stands, though it looks like a pattern.
        (["[2]", "", "# a comment"], ["1", "3", "chat 1", "chat 2"]),
        (["vg/d.jpg"], ["1", "[2]", "chat 1", "chat 2"]),
        # Any image of a record.
        (["vg/*"], ["1", "chat 1", "chat 2"]),
        (["coco/[ax].jpg", "chat ?"], ["[2]", "3"]),
        (["*/d.jpg", "1"], ["[2]", "chat 1", "chat 2"]),
    ],
)
def test_a_line_is_an_id_a_path_or_a_pattern(tmp_path: Path, lines: list[str], expected: list[str]) -> None:
    assert left(tmp_path, *lines) == expected


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            ["1", "", "4", "x*"],
            r"2 of its 3 lines match no record of the pool \(first: line 3, '4'\); write ids",
        ),
        # Names count as they are written.
        (["1 "], r"first: line 1, '1 '"),
        (["COCO/*"], r"first: line 1, 'COCO/\*'"),
        (["# nothing"], r"it names no record; write an id or a pattern on each line"),
        (["*"], r"it excludes all 3 images of the pool; leave some"),
    ],
)
def test_a_file_that_does_not_fit_the_pool_is_refused(
    tmp_path: Path, lines: list[str], sentence: str
) -> None:
    with pytest.raises(PreselError, match=sentence):
        left(tmp_path, *lines)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreselError, match="there is no such file"):
        without_excluded(LISTING, tmp_path / "none.txt")
    (tmp_path / "ids.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(PreselError, match="save it as UTF-8"):
        without_excluded(LISTING, tmp_path / "ids.txt")


def test_an_id_means_its_record_alone_though_a_path_is_spelled_so(tmp_path: Path) -> None:
    file = tmp_path / "exclude.txt"
    listing = Listing(
        [Item("a", "x.png", None), Item("x.png", "y.png", None), Item("y.png", "z.png", None)], kept=["z.png"]
    )
    for line, expected in (("x.png", ["x.png"]), ("y.png", ["y.png"]), ("?.png", ["a", "x.png", "y.png"])):
        file.write_text(line)
        if len(expected) < 3:
            left = without_excluded(listing, file)
            assert ([item.id for item in left.excluded], left.kept) == (expected, ["z.png"])
        else:
            with pytest.raises(PreselError, match="it excludes all 3 images"):
                without_excluded(listing, file)


NAMES = st.text(st.sampled_from("#ab*?[]!-/ "), min_size=1, max_size=4).filter(str.strip)


@given(st.lists(NAMES, min_size=2, max_size=12, unique=True))
def test_any_id_can_be_written_as_a_line(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    file = tmp_path_factory.mktemp("ids") / "ids.txt"
    file.write_text("\n".join(map(line_for, names[1:])))
    listing = Listing([Item(name, f"{number}.png", None) for number, name in enumerate(names)])
    assert [item.id for item in without_excluded(listing, file).items] == names[:1]


@given(st.lists(NAMES, min_size=1, max_size=12, unique=True), NAMES)
def test_patterns_match_as_by_brute_force(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], pattern: str
) -> None:
    file = tmp_path_factory.mktemp("ids") / "ids.txt"
    file.write_text(f"[#]{pattern}")
    # One name that nothing matches, so that some record is left.
    listing = Listing([Item(name, "0.png", None) for name in ["other", *(f"#{name}" for name in names)]])
    expected = [f"#{name}" for name in names if fnmatchcase(f"#{name}", f"[#]{pattern}")]
    if expected:
        assert [item.id for item in without_excluded(listing, file).excluded] == expected
    else:
        with pytest.raises(PreselError, match="match no record"):
            without_excluded(listing, file)


@given(st.sets(st.integers(0, 29), min_size=1, max_size=29))
def test_copied_ids_exclude_just_these(tmp_path_factory: pytest.TempPathFactory, chosen: set[int]) -> None:
    file = tmp_path_factory.mktemp("ids") / "ids.txt"
    file.write_text("\n".join(map(str, chosen)))
    listing = Listing([Item(str(number), f"{number}.png", None) for number in range(30)])
    left = without_excluded(listing, file)
    assert {item.id for item in left.excluded} == {str(number) for number in chosen}


def test_the_sample_is_drawn_from_the_others_and_keys_change_only_when_something_is_excluded(
    tmp_path: Path,
) -> None:
    two_kinds(tmp_path / "images", 10)
    file = tmp_path / "exclude.txt"
    file.write_text("cats/*\n")
    plain = ImageFolder(images=tmp_path / "images")
    assert not {"exclude", "near_duplicates"} & identity(plain).keys()
    source = ImageFolder(images=tmp_path / "images", exclude=file, limit=5)
    assert {item.task for item in source.sample(source._files.listing()).items} == {"dogs"}
    first = identity(source)
    file.write_text("cats/*\ndogs/001.png\n")
    second = identity(source)["exclude"]
    assert second != first["exclude"]
    file.write_text("# twice, and in another order\r\n\r\ndogs/001.png\r\ncats/*\r\ncats/*")
    assert identity(source)["exclude"] == second
    assert identity(ImageFolder(images=tmp_path / "images", near_duplicates="drop")) != identity(plain)

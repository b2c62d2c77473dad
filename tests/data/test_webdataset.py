"""WebDataset shards: how samples are read, and that nothing in them leads out of the store."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from presel.data.listing import Item
from presel.data.tar_shards import TarShards
from presel.data.webdataset import WebDataset, find_shards
from presel.errors import PreselError
from presel.store import Store
from tests.pictures import picture

Members = Sequence[tuple[str, bytes]]


def shard(path: Path, members: Members) -> Path:
    """Writes a tar file, gzipped if its name says so."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(path: Path, **settings: str | None) -> list[tuple[str, str | None, str, bytes]]:
    archive = TarShards((path,), None, "cls", None, None)
    (part,) = replace(archive, **settings).parts()  # type: ignore[arg-type]
    return [tuple(image) for image in part]  # type: ignore[misc]


def refusal(path: Path, **settings: str | None) -> str:
    with pytest.raises(PreselError) as caught:
        read(path, **settings)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


SAMPLES: Members = [
    ("./cats/1.jpg", b"one"),
    ("./cats/1.cls", b"7\n"),
    ("./cats/1.txt", b"SECRET"),
    ("cats/._2.cls", b"hidden"),
    ("cats/2.CLS", "Kätzchen".encode()),
    ("cats/2.v1.json", b'{"where": "not read"}'),
    ("cats/2.PNG", b"two"),
]


@pytest.mark.parametrize("name", ["a.v1-00.tar", "a.v1-00.tar.gz"])
def test_samples_are_read_with_their_task(tmp_path: Path, name: str) -> None:
    assert read(shard(tmp_path / name, SAMPLES)) == [
        ("a.v1-00/cats/1", "7", ".jpg", b"one"),
        ("a.v1-00/cats/2", "Kätzchen", ".png", b"two"),
    ]


def test_tasks_from_json_from_the_shards_name_and_from_nowhere(tmp_path: Path) -> None:
    path = shard(tmp_path / "ocr-01.tar", [("1.jpg", b"one"), ("1.json", b'{"kind": "vqa", "id": 3}')])
    assert read(path, task_key="json", task_field="kind")[0][1] == "vqa"
    assert read(path, task_key="json", task_field="id")[0][1] == "3"
    assert read(path, task_key=None, task_pattern="^([a-z]+)-")[0][1] == "ocr"
    assert read(path, task_key=None, task_pattern="o.r")[0][1] == "ocr"
    assert read(path, task_key=None)[0][1] is None
    assert "'other' in member '1.json' is missing; " in refusal(path, task_key="json", task_field="other")
    assert "pool.task_pattern is not found" in refusal(path, task_key=None, task_pattern="^vqa")


def test_one_of_several_images_is_chosen(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "a.tar", [("1.in.png", b"in"), ("1.out.png", b"out"), ("1.jpg", b"jpg"), ("1.webp", b"w")]
    )
    assert "sample 'a/1' has 2 images (1.in.png, 1.out.png, 1.jpg, 1.webp), not one" in refusal(
        path, task_key=None
    )
    assert read(path, task_key=None, image_key="in.png")[0][2:] == (".png", b"in")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("/etc/1.jpg", b"")], "the name of a member is '/etc/1.jpg', an absolute path; "),
        ([("../1.jpg", b"")], "the name of a member is '../1.jpg', which may leave the image folder"),
        ([("a\\1.jpg", b"")], "with a character no image path may have; "),
        (
            [("1.jpg", b""), ("1.cls", b"a"), ("2.jpg", b""), ("2.cls", b"a"), ("1.txt", b"")],
            "sample '1' occurs twice",
        ),
        (
            [("1.jpg", b""), ("1.jpg", b""), ("1.cls", b"a")],
            "sample 'a/1' has 2 images (1.jpg, 1.jpg, 1.cls), not one",
        ),
        ([("1.txt", b""), ("1.cls", b"a")], "sample 'a/1' has 0 images (1.txt, 1.cls), not one"),
        ([("1.jpg", b"")], "sample 'a/1' has no member that ends in .cls (1.jpg); set pool.task_key"),
        ([("1.jpg", b""), ("1.cls", b" ")], "member '1.cls' is blank; "),
        ([("1.jpg", b""), ("1.cls", b"\xff")], "member '1.cls' cannot be read ("),
    ],
)
def test_samples_that_cannot_be_used(tmp_path: Path, members: Members, said: str) -> None:
    assert said in refusal(shard(tmp_path / "a.tar", members))


def test_links_and_broken_files_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert "member '1.jpg' is no ordinary file" in refusal(tmp_path / "a.tar")
    for name in ("b.tar", "b.tar.gz"):
        whole = shard(tmp_path / name, [("1.jpg", bytes(range(256)) * 90), ("1.cls", b"a")])
        whole.write_bytes(whole.read_bytes()[: 250 if name.endswith("gz") else 9000])
        assert "it is not a whole tar file (" in refusal(whole)
    (tmp_path / "c.tar").write_text("no tar file")
    assert "it is not a whole tar file (" in refusal(tmp_path / "c.tar")


def test_shards_by_range_and_by_wildcard(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    paths = [shard(tmp_path / "1" / f"x-{number:03}.tar", SAMPLES) for number in (8, 9, 10)]
    assert find_shards(f"{tmp_path}/{{1..1}}/x-{{008..010}}.tar") == tuple(paths)
    assert find_shards(f"{tmp_path}/1/*.tar") == tuple(paths)
    for missing in ("1/x-{008..011}.tar", "1/y*.tar", "1/x-{010..008}.tar"):
        with pytest.raises(PreselError, match=r"no (such )?shard; check pool\.shards"):
            find_shards(f"{tmp_path}/{missing}")


def test_images_are_unpacked_with_their_bytes_and_without_a_text(tmp_path: Path, store: Store) -> None:
    paths = [picture(tmp_path / f"{number}.jpg", number) for number in range(4)]
    for number in range(2):
        members = [
            (f"{path.stem}.{ending}", data)
            for path in paths[2 * number : 2 * number + 2]
            for ending, data in (("jpg", path.read_bytes()), ("cls", b"vqa"), ("txt", b"SECRET"))
        ]
        shard(tmp_path / f"{number}.tar", members)
    files = WebDataset(shards=f"{tmp_path}/{{0..1}}.tar").files(store)
    items = files.listing().items
    assert items[:3] == [
        Item("0/0", "00000/000000.jpg", "vqa"),
        Item("0/1", "00000/000001.jpg", "vqa"),
        Item("1/2", "00001/000000.jpg", "vqa"),
    ]
    assert [(files.images / item.image).read_bytes() for item in items] == [
        path.read_bytes() for path in paths
    ]
    assert not any(b"SECRET" in file.read_bytes() for file in store.root.rglob("*") if file.is_file())


def test_one_name_for_two_images_is_refused(tmp_path: Path, store: Store) -> None:
    for folder in "12":
        (tmp_path / folder).mkdir()
        shard(tmp_path / folder / "x.tar", SAMPLES)
    with pytest.raises(PreselError, match="two images of the pool are named 'x/cats/1'"):
        WebDataset(shards=f"{tmp_path}/{{1..2}}/x.tar").files(store)


def test_what_decides_the_images(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", SAMPLES)

    def identity(**settings: str | float) -> object:
        return WebDataset(shards=f"{tmp_path}/a.tar", **settings).identity()  # type: ignore[arg-type]

    first = identity()
    assert identity(max_rejected_share=0.5) == first
    assert identity(task_key="txt") != first
    shard(tmp_path / "a.tar", SAMPLES[:2])
    assert identity() != first

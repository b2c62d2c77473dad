"""WebDataset shards: how samples are read, and that nothing in them leads out of the store."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from presel.data.listing import Item
from presel.data.webdataset import TarShards, WebDataset, find_shards
from presel.errors import PreselError
from presel.storage.store import Store
from tests.pictures import picture

Members = Sequence[tuple[str, bytes]]


def packed(members: Members, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def shard(path: Path, members: Members) -> Path:
    """Writes a tar file, gzipped if its name says so."""
    data = packed(members)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
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
    assert "pool.task_pattern does not match" in refusal(path, task_key=None, task_pattern="^vqa")


def test_one_of_several_images_is_chosen(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "a.tar", [("1.in.png", b"in"), ("1.out.png", b"out"), ("1.jpg", b"jpg"), ("1.webp", b"w")]
    )
    assert "sample 'a/1' has 2 images ('1.in.png', '1.out.png', '1.jpg', '1.webp'), not one" in refusal(
        path, task_key=None
    )
    assert read(path, task_key=None, image_key="in.png")[0][2:] == (".png", b"in")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("/etc/1.jpg", b"")], "the name of a member is '/etc/1.jpg', an absolute path; "),
        ([("../1.jpg", b"")], "the name of a member is '../1.jpg', which may leave the image folder"),
        ([("a\\1.jpg", b"")], "with a backslash, which image paths may not have; "),
        (
            [("1.jpg", b""), ("1.cls", b"a"), ("2.jpg", b""), ("2.cls", b"a"), ("1.txt", b"")],
            "sample '1' occurs twice",
        ),
        (
            [("1.jpg", b""), ("1.jpg", b""), ("1.cls", b"a")],
            "sample 'a/1' has 2 images ('1.jpg', '1.jpg', '1.cls'), not one",
        ),
        ([("1.txt", b""), ("1.cls", b"a")], "sample 'a/1' has 0 images ('1.txt', '1.cls'), not one"),
        ([("1.jpg", b"")], "sample 'a/1' has no member that ends in .cls ('1.jpg'); set pool.task_key"),
        ([("1.jpg", b""), ("1.cls", b" ")], "member '1.cls' is blank; "),
        ([("1.jpg", b""), ("1.cls", b"\xff")], "member '1.cls' cannot be read ("),
    ],
)
def test_samples_that_cannot_be_used(tmp_path: Path, members: Members, said: str) -> None:
    assert said in refusal(shard(tmp_path / "a.tar", members))


def test_links_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert "member '1.jpg' is not a regular file" in refusal(tmp_path / "a.tar")


WHOLE = packed([(f"{number}.{ending}", b"a" * 700) for number in range(4) for ending in ("jpg", "cls")])
# A header and two blocks of data each.
MEMBER = 512 + 1024
END = 8 * MEMBER
GZ = gzip.compress(WHOLE)


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (WHOLE[:END], "no end-of-archive block"),
        (WHOLE[: 4 * MEMBER], "no end-of-archive block"),
        (WHOLE[: END + 100], "truncated header"),
        (WHOLE[: 4 * MEMBER + 100], "truncated header"),
        (WHOLE[: 4 * MEMBER + 600], "unexpected end of data"),
        (WHOLE[: 5 * MEMBER - 100], "unexpected end of data"),
        (b"", "no end-of-archive block"),
        (changed(WHOLE, 0, b"x"), "bad checksum"),
        (changed(WHOLE, 4 * MEMBER, b"x"), "bad checksum"),
        (changed(WHOLE, 4 * MEMBER, bytes(range(256)) * 2), "invalid header"),
        (changed(WHOLE, 4 * MEMBER, bytes(512)), "data after the end-of-archive block"),
        (changed(WHOLE, 2 * MEMBER, bytes(2 * MEMBER)), "data after the end-of-archive block"),
        (WHOLE + packed(SAMPLES), "data after the end-of-archive block"),
        (WHOLE + b"garbage", "data after the end-of-archive block"),
        (WHOLE + bytes(3 << 20), "more than 2,097,152 bytes of padding"),
        (GZ[:-1], "Compressed file ended before"),
        (GZ[: len(GZ) // 2], "Compressed file ended before"),
        (GZ + b"garbage", "Not a gzipped file"),
        (changed(GZ, len(GZ) - 8, b"?"), "CRC check failed"),
        (bz2.compress(WHOLE)[:-9], "Compressed file ended before"),
        (changed(bz2.compress(WHOLE), 40, b"????"), "Invalid data stream"),
        (lzma.compress(WHOLE)[:-9], "Compressed file ended before"),
        (header("x", 1 << 40, tarfile.XHDTYPE) + bytes(1024), "a header of 1,099,511,627,776 bytes"),
        (header("x", 1 << 40, tarfile.GNUTYPE_LONGNAME) + bytes(1024), "a header of 1,099,511,627,776 bytes"),
        (header("1.txt", 1 << 40) + bytes(1024), "unexpected end of data"),
        (header("x", 0, tarfile.GNUTYPE_LONGNAME) * 2000 + bytes(1024), "maximum recursion depth"),
        # A member that is followed by itself; Python versions differ in what finds it.
        (header("1.jpg", -512) + bytes(1024), ""),
        (b"no tar file", "it is a text file"),
        (b"\xff\xd8\xff\xe0" + bytes(600), "it is JPEG"),
        (b"<!DOCTYPE html><html>", "it is a web page"),
    ],
)
def test_files_that_are_not_whole(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    message = refusal(path)
    assert message.startswith(f"it is not a whole tar file ({why}")
    assert message.endswith("; fetch it again")


@pytest.mark.parametrize(
    "data",
    [
        WHOLE,
        WHOLE[: END + 512],
        WHOLE[: END + 1024],
        WHOLE + bytes(1 << 20),
        GZ,
        GZ + bytes(600),
        bz2.compress(WHOLE),
        lzma.compress(WHOLE),
    ],
)
def test_files_that_are_whole(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    assert [image[0] for image in read(path)] == ["a/0", "a/1", "a/2", "a/3"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path: Path, form: int) -> None:
    stem = "日本語/" + "d" * 150 + "/" + "n" * 120
    (tmp_path / "a.tar").write_bytes(packed([(f"{stem}.jpg", b"1"), (f"{stem}.cls", b"a")], form))
    assert read(tmp_path / "a.tar") == [(f"a/{stem}", "a", ".jpg", b"1")]


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_files_of_gnu_tar(tmp_path: Path, form: str) -> None:
    with (tmp_path / "1.jpg").open("wb") as file:
        file.truncate(1 << 18)
        file.seek(1 << 17)
        file.write(b"data")
    (tmp_path / "1.cls").write_text("a")
    subprocess.run(
        ["tar", "-S", f"--format={form}", "-cf", "a.tar", "1.jpg", "1.cls"], cwd=tmp_path, check=True
    )
    assert read(tmp_path / "a.tar")[0][3] == (tmp_path / "1.jpg").read_bytes()


def test_pointers_to_files_and_empty_shards(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert refusal(tmp_path / "a.tar") == (
        "it is not a whole tar file (it is a Git LFS pointer); run git lfs pull"
    )
    (tmp_path / "b.tar").write_bytes(packed([("._1.jpg", b"hidden")]))
    assert refusal(tmp_path / "b.tar").startswith("it contains no sample; ")


def test_members_that_are_too_large_to_be_read(tmp_path: Path) -> None:
    for name in ("1.jpg", "1.cls"):
        with gzip.open(tmp_path / "a.tar", "wb", compresslevel=1) as file:
            file.write(header(name, 1 << 40))
            file.write(bytes(1 << 20))
        assert f"member '{name}' has 1,099,511,627,776 bytes, more than the " in refusal(tmp_path / "a.tar")
    path = shard(tmp_path / "b.tar", [("1.jpg", b""), ("1.json", b"[" * 100_000)])
    assert "member '1.json' cannot be read (maximum recursion" in refusal(
        path, task_key="json", task_field="task"
    )


@pytest.mark.parametrize("stem", ["22.05", "IMG_2023.05.01", "my.photo"])
def test_dots_in_keys_are_reported(tmp_path: Path, stem: str) -> None:
    path = shard(tmp_path / "a.tar", [(f"{stem}.jpg", b""), (f"{stem}.cls", b"a")])
    assert "a sample's key ends at the first dot of a name: put another character in place" in refusal(path)


def test_a_second_image_after_a_number_is_not_overlooked(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [("22.jpg", b""), ("22.cls", b"a"), ("22.5.jpg", b"")])
    assert "sample 'a/22' has 2 images ('22.jpg', '22.cls', '22.5.jpg'), not one; " in refusal(path)


def test_shards_by_range_and_by_wildcard(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    paths = [shard(tmp_path / "1" / f"x-{number:03}.tar", SAMPLES) for number in (8, 9, 10)]
    assert find_shards(f"{tmp_path}/{{1..1}}/x-{{008..010}}.tar") == tuple(paths)
    assert find_shards(f"{tmp_path}/1/*.tar") == tuple(paths)
    paths[0].with_name("y.tar").symlink_to(paths[0])
    os.mkfifo(paths[0].with_name("ypipe.tar"))
    for missing in ("1/x-{008..999999999999}.tar", "1/y*.tar", "1/x-{010..008}.tar"):
        with pytest.raises(PreselError, match=r"(no such shard|its range is empty); check pool\.shards"):
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


def test_a_shard_that_cannot_be_read_is_no_fault_of_the_store(tmp_path: Path, store: Store) -> None:
    # Reading from it fails for root as well, unlike from a file without permissions.
    (tmp_path / "a.tar").symlink_to("/proc/self/mem")
    with pytest.raises(PreselError) as caught:
        WebDataset(shards=f"{tmp_path}/a.tar").files(store)
    assert str(caught.value) == (
        f"{tmp_path}/a.tar: it cannot be read (Input/output error); check the file and its permissions"
    )

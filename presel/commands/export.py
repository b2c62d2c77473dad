"""`presel export`: reads a run, writes its choice in one format, all or nothing."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from presel.console import ArgumentParser, console
from presel.data.llava import Record
from presel.errors import PreselError
from presel.export.finished import FinishedRun
from presel.export.hf import write_hf
from presel.export.image_files import PLACING, check_images, place_images
from presel.export.llama_factory import write_llama_factory
from presel.export.llava import write_llava
from presel.export.manifest import HEAD, write_manifest
from presel.storage.files import atomic_folder

_WRITERS: dict[str, Callable[[Path, Sequence[Record], Path], None]] = {
    "llava": write_llava,
    "llama_factory": write_llama_factory,
    "hf": write_hf,
}
_FORMATS = (*_WRITERS, "manifest")
_IMAGES = ("reference", *PLACING)

_EPILOG = """\
formats:
  llava          OUT/train.json; LLaVA reads it as --data_path, the image folder as --image_folder, and
                 presel as pool=llava_json pool.annotations=OUT/train.json pool.images=IMAGES
  llama_factory  OUT/train.json and OUT/dataset_info.json; in LLaMA-Factory's own configuration
                 dataset_dir: OUT
                 dataset: selection
  hf             a dataset with the image files in it: datasets.load_from_disk("OUT")
                 (needs pip install 'presel[sources]')
  manifest       nothing else; for runs with until=selection, as only this needs no instructions

With each of them goes the selection manifest. selection_manifest.parquet has one row a chosen image: id,
image, task, whatever the strategy says of it (cluster, centrality, rank, why, its scores), and with
instructions whether it got one. selection_manifest.json has what the choice came from: strategy, budget,
seed, versions, git commit, dates, and key and settings of every stage behind it.

images:
  reference      left where they are: llava names them relative to the pool's image folder, which is
                 printed, llama_factory by absolute paths
  copy           the chosen ones copied to OUT/images
  link           hard links to them in OUT/images, which take no space; on the same disk only

OUT appears once all is written. A process that is killed leaves .OUT.….tmp beside it, to be deleted.

examples:
  presel export outputs/runs/DATE/TIME --format llama_factory --out for_training --images copy
  presel export outputs/runs/DATE/TIME --format manifest --out to_annotate --images copy
"""


def export_command(arguments: Sequence[str]) -> int:
    """Runs `presel export`.

    Returns:
        0.

    Raises:
        PreselError: If the run cannot be exported so, or not to there.
    """
    parser = ArgumentParser(
        prog="presel export",
        description="Write what a finished run chose as training data for other programs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of the run, with its run.json")
    parser.add_argument("--format", required=True, choices=_FORMATS, help="see below")
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    parser.add_argument(
        "--images", default="reference", choices=_IMAGES, help="what becomes of the images (%(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export in that folder")
    options = parser.parse_args(arguments)
    run = FinishedRun.read(options.run)
    images = export(run, options.format, options.out, options.images, force=options.force)
    console.print(f"export        {options.out}")
    console.print(f"image folder  {images}")
    return 0


def export(run: FinishedRun, form: str, out: Path, images: str = "reference", *, force: bool = False) -> Path:
    """Writes an export, under a temporary name until it is complete.

    Args:
        run: The run.
        form: `llava`, `llama_factory`, `hf` or `manifest`.
        out: The folder to make.
        images: `reference`, `copy` or `link`.
        force: Whether an earlier export may be replaced.

    Returns:
        The folder that image paths of the manifest are relative to.

    Raises:
        PreselError: If the run has not what the format needs, an image is gone, or there is something at
            `out` already.
    """
    if form == "hf" and images != "reference":
        raise PreselError(f"--images {images}: --format hf holds the images itself; leave the option out")
    out = out.resolve()
    _check_target(out, force, [run.folder, run.images, run.selection])
    writer = _WRITERS.get(form)
    chosen, last = run.chosen(), run.selection
    records: list[Record] = []
    if writer:
        records, last = run.records(), run.instructions
        chosen["instructed"] = chosen["id"].isin([record.id for record in records])
    files = chosen["image"].unique().tolist()
    check_images(run.images, [*files, *(record.image for record in records)])
    image_folder = Path("images") if images in PLACING else run.images
    try:
        with atomic_folder(out) as folder:
            if writer:
                writer(folder, records, image_folder)
            write_manifest(folder, run, chosen, last, {"format": form, "image_folder": str(image_folder)})
            if images in PLACING:
                place_images(run.images, files, folder / image_folder, images)
    except OSError as error:
        raise PreselError(
            f"{out}: the export cannot be written ({error}); check the folder and the space left"
        ) from error
    return out / image_folder


def _check_target(out: Path, force: bool, sources: Sequence[Path]) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise PreselError(
            f"{out}: there is something already; name another folder by --out, or replace an earlier export "
            "by --force"
        )
    if not (out / HEAD).exists():
        raise PreselError(
            f"{out}: this is no earlier export (it has no {HEAD}), and --force replaces nothing else; name "
            "another folder by --out"
        )
    for source in sources:
        if source.resolve().is_relative_to(out):
            raise PreselError(
                f"{out}: it holds {source}, which the export reads; name another folder by --out"
            )

"""`presel export`: writes the selection of a finished run in the format of another program, atomically."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from presel.console import ArgumentParser, console
from presel.data.llava import Record
from presel.errors import PreselError
from presel.export.fiftyone import write_fiftyone
from presel.export.formats import IMAGES_IN_FILE, WRITERS
from presel.export.image_files import IMAGE_MODES, check_exportable, place_images
from presel.export.manifest import MANIFEST_JSON, write_manifest, written_paths
from presel.export.parquet import write_parquet
from presel.runs import RunRecord, load_run
from presel.storage.files import atomic_folder, read_json

_EPILOG = """\
formats:
  llava          OUT/train.json; LLaVA (of several images a record, LLaVA-NeXT) reads it as --data_path, the
                 image folder as --image_folder, and presel as
                 pool=llava_json pool.annotations=OUT/train.json pool.images=IMAGES
  llama_factory  OUT/train.json and OUT/dataset_info.json; in LLaMA-Factory's own configuration
                 dataset_dir: OUT
                 dataset: selection
  ms_swift       OUT/train.json: swift sft --dataset OUT/train.json
  internvl       OUT/train.jsonl, and OUT/meta.json, which InternVL's training takes as --meta_path
  trl            OUT/train.parquet with the image files in it: trl sft --dataset_name OUT, or in Python
                 load_dataset("OUT", split="train") for SFTTrainer (needs pip install '.[sources]')
  hf             a dataset with the image files in it: datasets.load_from_disk("OUT")
                 (needs pip install '.[sources]')
  manifest       the selection manifest only

The whole pool, chosen or not, for programs that show it:
  parquet        OUT/pool.parquet, with thumbnails, places on the map, nearest neighbors:
                 embedding-atlas OUT/pool.parquet --x x --y y --image thumbnail --neighbors neighbors
                 spotlight OUT/pool.parquet
  fiftyone       OUT, a dataset folder: fiftyone.Dataset.from_dir("OUT",
                 dataset_type=fiftyone.types.FiftyOneDataset)

manifest, parquet and fiftyone need no instructions (until=selection); the last holds those that there are.
Features and map are computed first, unless the run's store has them.

Each export includes the selection manifest. selection_manifest.parquet has one row per selected image: id,
image, task, the strategy's columns (cluster, centrality, rank, why, its scores), and with instructions
whether it got one. selection_manifest.json has the provenance: strategy, budget, seed, versions, git commit,
dates, and key and settings of every stage behind the selection.

images:
  reference      not copied: llava uses paths relative to the pool's image folder, which is printed,
                 the others absolute paths
  copy           they are copied to OUT/images
  link           hard links in OUT/images, which take no space; on the same disk only

trl and hf hold the images themselves, parquet their thumbnails. fiftyone takes the images of the whole pool,
not of the selection alone. In ms_swift and internvl all paths are absolute, those of copied images too: to
have OUT elsewhere, export it there.

OUT appears when everything is written. A killed process leaves .OUT.….tmp beside it, which can be deleted.

examples:
  presel export outputs/runs/DATE/TIME --format llama_factory --out for_training --images copy
  presel export outputs/runs/DATE/TIME --format manifest --out to_annotate --images copy
"""


# Formats of the whole pool, by writers of the folder to write to, the run and its image folder.
_OF_THE_POOL: dict[str, Callable[[Path, RunRecord, Path], None]] = {
    "parquet": write_parquet,
    "fiftyone": write_fiftyone,
}


def main(arguments: Sequence[str]) -> int:
    """Runs `presel export`, see `export`."""
    parser = ArgumentParser(
        prog="presel export",
        description="Write the selection of a finished run as training data for other programs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of the run, with its run.json")
    parser.add_argument(
        "--format", required=True, choices=(*WRITERS, *_OF_THE_POOL, "manifest"), help="see below"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    parser.add_argument(
        "--images",
        default="reference",
        choices=("reference", *IMAGE_MODES),
        help="how images are included (%(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export in that folder")
    options = parser.parse_args(arguments)
    run = load_run(options.run)
    images = export(run, options.format, options.out, options.images, force=options.force)
    console.print(f"export        {options.out}")
    console.print(f"image folder  {images}")
    return 0


def export(run: RunRecord, form: str, out: Path, images: str = "reference", *, force: bool = False) -> Path:
    """Writes an export to a temporary folder, which is renamed when complete.

    Args:
        run: The run.
        form: A key of `WRITERS`, `parquet`, `fiftyone` or `manifest`.
        out: The folder to make.
        images: `reference`, `copy` or `link`.
        force: Whether an earlier export may be replaced.

    Returns:
        The folder that image paths of the manifest are relative to.

    Raises:
        PreselError: If the run lacks instructions that the format needs, a result or an image is missing or
            damaged, or `out` exists and may not be replaced.
    """
    if form in (*IMAGES_IN_FILE, "parquet") and images != "reference":
        raise PreselError(f"--images {images}: --format {form} holds the images itself; leave the option out")
    out = out.resolve()
    _check_target(out, force, [run.folder, run.image_folder, run.result("selection")])
    writer = WRITERS.get(form)
    if writer and "instructions" not in run.stages:
        raise PreselError(
            f"{run.folder}: this run ended with its selection, without instructions; run the same command "
            "again with until=instructions (and instructions=NAME if its pool has none), or take "
            "--format manifest, parquet or fiftyone, which need none"
        )
    chosen = run.chosen
    records: list[Record] = []
    if writer:
        records = run.records()
        chosen["instructed"] = chosen["id"].isin([record.id for record in records])
    files = run.chosen_files if form not in _OF_THE_POOL else run.all_files
    check_exportable(run.image_folder, [*files, *(image for record in records for image in record.images)])
    image_folder = Path("images") if images in IMAGE_MODES else run.image_folder
    try:
        with atomic_folder(out) as folder:
            if writer:
                writer(folder, records, image_folder, out)
            elif form in _OF_THE_POOL:
                _OF_THE_POOL[form](folder, run, image_folder)
            if images in IMAGE_MODES:
                place_images(run.image_folder, files, folder / image_folder, images)
            last = run.training_role if writer else "selection"
            write_manifest(folder, run, chosen, last, {"format": form, "image_folder": str(image_folder)})
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
            f"{out}: this exists already; name another folder by --out, or replace an earlier export "
            "by --force"
        )
    if not (out / MANIFEST_JSON).exists():
        raise PreselError(
            f"{out}: this is no earlier export (it has no {MANIFEST_JSON}), and --force replaces nothing "
            "else; name another folder by --out"
        )
    written = {*read_json(out / MANIFEST_JSON).get("written", []), MANIFEST_JSON}
    others = [path for path in written_paths(out) if path not in written]
    if others:
        raise PreselError(
            f"{out}: it holds {others[0]} ({len(others)} such), which the earlier export did not write, and "
            "--force replaces the whole folder; move that, or name another folder by --out"
        )
    for source in sources:
        if source.resolve().is_relative_to(out):
            raise PreselError(
                f"{out}: it holds {source}, which the export reads; name another folder by --out"
            )

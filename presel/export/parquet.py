"""The whole pool as one parquet file, which embedding-atlas and Spotlight open."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from presel.console import progress
from presel.data.images import map_images, open_image
from presel.export.pool_table import neighbors_in_tasks, pool_table
from presel.page.pictures import FEW
from presel.runs import RunRecord
from presel.selection.threads import cpu_count

# Pixels, and quality of JPEG, which every program reads.
_SIDE = 128
_QUALITY = 80
# Rows held in memory at a time, with their thumbnails. Worker processes start anew for each such part.
_ROWS = 20_000
_THUMBNAIL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(folder: Path, run: RunRecord, images: Path) -> None:
    """Writes `pool.parquet`: the `pool_table`, with full image paths, neighbors and thumbnails.

    Args:
        folder: The folder to write to.
        run: The run.
        images: The image folder.
    """
    table = pool_table(run)
    files = table["image"].tolist()
    neighbors = neighbors_in_tasks(run, table)
    table = table.assign(image=[str(images / file) for file in files])
    content = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata()
    content = content.append_column("neighbors", neighbors)
    schema = content.schema.append(pa.field("thumbnail", _THUMBNAIL))
    workers = cpu_count() if len(files) > FEW else 0
    with (
        progress(f"{len(files):,} thumbnails", len(files)) as advance,
        pq.ParquetWriter(folder / "pool.parquet", schema) as writer,
    ):
        for start in range(0, len(files), _ROWS):
            shown = map_images(images, files[start : start + _ROWS], _thumbnail, workers, advance)
            thumbnails = pa.array([{"bytes": one} for one in shown], _THUMBNAIL)
            rows = content.slice(start, len(shown))
            writer.write_table(rows.append_column(schema.field("thumbnail"), thumbnails))


def _thumbnail(root: Path, image: str) -> bytes:
    picture = open_image(root / image)
    picture.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=_QUALITY)
    return data.getvalue()

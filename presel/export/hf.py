"""Export as a dataset of the Hugging Face library `datasets`."""

from collections.abc import Sequence
from pathlib import Path

from presel.console import console
from presel.data.llava import Record
from presel.errors import PreselError


def write_hf(folder: Path, records: Sequence[Record], images: Path) -> None:
    """Saves a `Dataset` with columns id, image, task and conversations; image files are embedded.

    Args:
        folder: Folder to write, for `datasets.load_from_disk`.
        records: The records to write.
        images: Image folder.

    Raises:
        PreselError: If `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise PreselError(
            f"--format hf needs the package datasets ({error}); install it: pip install 'presel[sources]'"
        ) from error
    if not console.is_terminal:
        datasets.disable_progress_bars()
    text = datasets.Value("string")
    features = datasets.Features(
        {
            "id": text,
            "image": datasets.Image(),
            "task": text,
            "conversations": [{"from": text, "value": text}],
        }
    )
    columns = {
        "id": [record.id for record in records],
        "image": [str(images / record.image) for record in records],
        "task": [record.task for record in records],
        "conversations": [list(record.conversations) for record in records],
    }
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder)

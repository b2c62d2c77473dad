"""Instructions that the pool's annotation file contains already."""

from collections.abc import Sequence
from dataclasses import replace

from presel.component import component
from presel.data.listing import PoolFiles
from presel.data.sources import NO_INSTRUCTIONS, Source, annotated
from presel.errors import PreselError
from presel.instructions.provider import InstructionProvider, InstructionRequest, ProviderResult


@component
class Annotations(InstructionProvider):
    """Looks instructions up in the pool's annotation file."""

    def check_source(self, source: Source) -> None:
        """Raises `PreselError` unless the source has an annotation file."""
        if not source.instructed:
            raise PreselError(NO_INSTRUCTIONS)

    def check(self, files: PoolFiles, tasks: Sequence[str]) -> None:
        """Raises `PreselError` unless the files include an annotation file."""
        annotated(files)

    def reveal(self, requests: Sequence[InstructionRequest], files: PoolFiles) -> ProviderResult:
        """Looks the instructions up.

        Raises:
            PreselError: If the annotation file has no record of an image.
        """
        pool = annotated(files)
        ids = {image.id for image in requests}
        records = {record.id: record for record in pool.records() if record.id in ids}
        missing = sorted(ids - records.keys())
        if missing:
            raise PreselError(
                f"{pool.annotations}: no record with id '{missing[0]}' ({len(missing)} of {len(ids)} "
                "chosen images are missing); run on the file that the pool was read from"
            )
        # The pool's tasks may have been discovered by clustering, not read from the file.
        return ProviderResult([replace(records[image.id], task=image.task) for image in requests], {})

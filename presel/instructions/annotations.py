"""Instructions that the pool's annotation file holds already."""

from collections.abc import Sequence
from dataclasses import replace

from presel.component import component
from presel.data.listing import PoolFiles
from presel.data.sources import NO_INSTRUCTIONS, Source, annotated
from presel.errors import PreselError
from presel.instructions.provider import InstructionProvider, Revealed, Wanted


@component
class Annotations(InstructionProvider):
    """Instructions that the pool's annotation file holds already."""

    def check_source(self, source: Source) -> None:
        """Makes sure that the source has such a file."""
        if not source.instructed:
            raise PreselError(NO_INSTRUCTIONS)

    def check(self, files: PoolFiles, tasks: Sequence[str]) -> None:
        """Makes sure that there is such a file."""
        annotated(files)

    def reveal(self, wanted: Sequence[Wanted], files: PoolFiles) -> Revealed:
        """Looks the instructions up.

        Raises:
            PreselError: If the annotation file has no record of that id.
        """
        held = annotated(files)
        ids = {image.id for image in wanted}
        records = {record.id: record for record in held.records() if record.id in ids}
        missing = sorted(ids - records.keys())
        if missing:
            raise PreselError(
                f"{held.annotations}: no record with id '{missing[0]}' ({len(missing)} of {len(ids)} "
                "chosen images are missing); run on the file that the pool was read from"
            )
        # Their tasks may have been discovered since the file was written.
        return Revealed([replace(records[image.id], task=image.task) for image in wanted], {})

"""Sources of labeled validation samples, for strategies that read some before they select."""

from dataclasses import field
from typing import Annotated, ClassVar

from pydantic import Field

from presel.component import Seed, component
from presel.data.checks import check_file
from presel.data.digits.stage import DigitSplit
from presel.data.llava import LeftOut
from presel.data.sources import DrawnScenes, LlavaRecords, Source
from presel.storage.files import sha256


@component
class Validation(Source):
    """Held-out samples of the target tasks, with their answers; not those that models are scored on."""

    group: ClassVar[str] = "validation"

    # Without some of its samples a task would not be comparable.
    max_rejected_share: Annotated[float, Field(ge=0, le=1)] = field(default=0.0, compare=False)

    def repeats(self, other: Source) -> bool:
        """Whether another source, the pool or the evaluation, shares samples."""
        raise NotImplementedError


@component
class LlavaValidation(Validation, LlavaRecords):
    """Validation samples in a LLaVA-format file, as the evaluation's may be."""

    with_references: ClassVar[bool] = True

    text_only: LeftOut = "refuse"

    def repeats(self, other: Source) -> bool:
        """Whether it reads the pool's file, or shares a record with the evaluation's, by id and image."""
        if not isinstance(other, LlavaRecords):
            return False
        for file in (self.annotations, other.annotations):
            check_file(file)
        if other.group == "pool":
            return sha256(self.annotations) == sha256(other.annotations)
        # Errors in the records are told when their stages are computed.
        listings = [source.listed_files.listing(lambda _: None) for source in (self, other)]
        mine, scored = ({(item.id, item.images) for item in listing.items} for listing in listings)
        return not mine.isdisjoint(scored)


@component
class DigitValidation(Validation, DrawnScenes):
    """Validation samples of the built-in benchmarks' tasks, drawn with another seed than the benchmarks."""

    split: DigitSplit = "benchmarks"
    size: Annotated[int, Field(ge=1)] = 20
    seed: Seed = 2

    def repeats(self, other: Source) -> bool:
        """Whether it is drawn with the same seed, however many."""
        return isinstance(other, DrawnScenes) and (self.split, self.seed) == (other.split, other.seed)

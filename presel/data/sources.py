"""Sources: where the images of a pool or of benchmarks come from."""

from dataclasses import field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BeforeValidator, Field

from presel.component import Seed, component
from presel.data.checks import check_file
from presel.data.digits.stage import DigitSplit, ScenesStage
from presel.data.exclusion import exclusion_key, without_excluded
from presel.data.images import image_fingerprint
from presel.data.listing import Listing, PoolFiles
from presel.data.llava import LlavaFiles, TaskNamer, TaskRule, TextOnly, image_paths
from presel.data.near_duplicates import NearDuplicates
from presel.errors import PreselError
from presel.storage.files import sha256
from presel.storage.stage import Stage, fields_identity
from presel.storage.store import Store

NO_INSTRUCTIONS = (
    "this pool has images and no instructions; choose who writes them (instructions=openai, openai_batch, "
    "label_studio or transformers)"
)


def _mapping(given: object) -> object:
    """Reads a mapping that is given as text."""
    if not isinstance(given, str):
        return given
    try:
        return yaml.safe_load(given)
    except yaml.YAMLError:
        return given


def annotated(files: PoolFiles) -> LlavaFiles:
    """The files, if they include instructions.

    Raises:
        PreselError: If they are images only.
    """
    if not isinstance(files, LlavaFiles):
        raise PreselError(f"{files.images}: {NO_INSTRUCTIONS}")
    return files


@component
class Source:
    """Base class of sources.

    Attributes:
        max_rejected_share: Maximum share of unusable images; the run stops above it.
        min_side: Images with a side shorter than this, in pixels, are unusable.
        exclude: File of records to leave out, an id, path or pattern on each line (`without_excluded`); None
            for none.
        instructed: Whether the source has instructions too.
        group: The config group that error messages name.
    """

    instructed: ClassVar[bool] = True
    group: ClassVar[str] = "pool"

    # A limit, which does not change what the pool holds.
    max_rejected_share: Annotated[float, Field(ge=0, le=1)] = field(default=0.01, compare=False)
    min_side: Annotated[int, Field(ge=1)] = 2
    exclude: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without cached properties, which may list a million images: other processes need none."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def identity(self) -> dict[str, Any]:
        """What decides the usable images: the fields, with the content of files in place of their paths."""
        decisive = fields_identity(self) | self.content
        # Pools that leave nothing out have the keys that they had before there were these settings.
        if self.near_duplicates == "keep":
            decisive.pop("near_duplicates", None)
        if self.exclude is None:
            del decisive["exclude"]
        else:
            decisive["exclude"] = exclusion_key(self.exclude)
        return decisive

    @property
    def near_duplicates(self) -> NearDuplicates:
        """What becomes of records that show nearly the same as another one; see `PoolSource`."""
        return "keep"

    @cached_property
    def content(self) -> dict[str, Any]:
        """Digests of the source's files, by the names of the fields that they replace in its identity."""
        raise NotImplementedError

    @property
    def stages(self) -> tuple[Stage[Any], ...]:
        """The stages that produce the files, if any."""
        return ()

    def files(self, store: Store) -> PoolFiles:
        """The files, which stages produce first if necessary."""
        raise NotImplementedError

    @property
    def keeps_text_only(self) -> bool:
        """Whether records without an image are trained on beside the selection."""
        return False

    def sample(self, listing: Listing) -> Listing:
        """The records to use of all that the files list; here all but the excluded ones.

        Raises:
            PreselError: As `without_excluded`.
        """
        return listing if self.exclude is None else without_excluded(listing, self.exclude)


@component
class PoolSource(Source):
    """Base class of a pool's sources; questions of a benchmark or of validation may well share a picture.

    It stands last among base classes, so that the defaults of the others count.

    Attributes:
        near_duplicates: What becomes of records that show nearly the same as another one of their task, by
            the thumbnails that `presel doctor` compares: `keep` all, `keep_one` of each group, or `drop` all
            of them; see `near_duplicates_to_drop`.
    """

    near_duplicates: NearDuplicates = "keep"


@component
class FileSource(Source):
    """Base class of sources that read existing files, of whose images a random sample may be used.

    See `Listing.sample`. It is drawn before any image is opened.

    Attributes:
        limit: Number of images to use, whatever their tasks; None for all.
        limit_per_task: Maximum number of images of each task; None for all.
    """

    limit: Annotated[int, Field(ge=1)] | None = None
    limit_per_task: Annotated[int, Field(ge=1)] | None = None

    def sample(self, listing: Listing) -> Listing:
        """Draws the sample from the records that are not excluded.

        Raises:
            PreselError: If there are fewer than `limit` images, or some without a task and `limit_per_task`.
        """
        listing = super().sample(listing)
        if self.limit is None and self.limit_per_task is None:
            return listing
        if self.limit_per_task is not None and any(item.task is None for item in listing.items):
            raise PreselError(
                f"{self.group}.limit_per_task needs images that each name a task; use {self.group}.limit"
            )
        sampled = listing.sample(self.limit, self.limit_per_task)
        if self.limit is not None and len(sampled.items) < self.limit:
            raise PreselError(
                f"{self.group}.limit={self.limit} is above the {len(sampled.items):,} images there are; "
                "lower it, or set it to null for all"
            )
        return sampled


@component
class ImageSource(FileSource, PoolSource):
    """Base class of sources that have images and no instructions.

    Attributes:
        task: The task of images for which nothing else names one.
    """

    instructed: ClassVar[bool] = False

    task: Annotated[str, Field(pattern=r"\S")] | None = None


@component
class LlavaRecords(FileSource):
    """Base class: an existing LLaVA-format annotation file and its folder of images.

    Attributes:
        annotations: JSON list of records, or JSON Lines if the name ends in `.jsonl`.
        images: Folder that the records' image paths are relative to.
        task_field: The field of a record that names its task; None for one task, `all`.
        task_patterns: Used instead of the field if given: regular expression on the image path → task,
            the first match counts. Text is read as YAML, since Hydra's command line takes no such names.
        ids: Whether a record's name is its `id` (`field`) or its position in the file, from 0 (`position`).
        text_only: Whether records without an image are an error (`refuse`), are skipped and counted, either
            those whose questions contain no image token (`drop`) or all (`drop_all`), or are trained on
            beside the selection (`keep`): free, and no part of pool and budget.
        with_references: Whether records may have a field `references`, see `LlavaFiles`.
    """

    with_references: ClassVar[bool] = False

    annotations: Path
    images: Path
    task_field: str | None = "task"
    task_patterns: Annotated[dict[str, str], BeforeValidator(_mapping)] | None = None
    ids: Literal["field", "position"] = "field"
    text_only: TextOnly = "refuse"

    @property
    def tasks(self) -> TaskNamer:
        """The rule for tasks."""
        return TaskRule(field=self.task_field, image_patterns=self.task_patterns)

    @property
    def keeps_text_only(self) -> bool:
        """As set."""
        return self.text_only == "keep"

    def files(self, store: Store) -> LlavaFiles:
        """The two paths as given."""
        return self.listed_files

    @cached_property
    def listed_files(self) -> LlavaFiles:
        """The same, for which no store is needed."""
        return LlavaFiles(
            self.annotations.absolute(),
            self.images.absolute(),
            self.tasks,
            numbered=self.ids == "position",
            text_only=self.text_only,
            group=self.group,
            with_references=self.with_references,
        )

    @cached_property
    def content(self) -> dict[str, Any]:
        """The annotation file's content, and the images' names, sizes and dates."""
        check_file(self.annotations)
        return {
            "annotations": sha256(self.annotations),
            "images": image_fingerprint(self.images, image_paths(self.annotations)),
            # The first matching pattern decides, so their order counts.
            "task_patterns": list((self.task_patterns or {}).items()),
        }


@component
class LlavaJson(LlavaRecords, PoolSource):
    """A pool in LLaVA's format."""


@component
class DrawnScenes(Source):
    """Base class: the built-in digit scenes, drawn on first use.

    Attributes:
        split: `pool`, with ten tasks; `narrow_pool`, with 85 small ones; or the held-out `benchmarks`.
        size: Number of images of the pool, or of each benchmark.
        seed: Decides every scene.
    """

    split: DigitSplit
    size: Annotated[int, Field(ge=1)]
    seed: Seed = 0
    max_rejected_share: Annotated[float, Field(ge=0, le=1)] = field(default=0.0, compare=False)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The key of the stage that draws the scenes."""
        return {"scenes": self.stages[0].key}

    @property
    def stages(self) -> tuple[Stage[Any], ...]:
        """The stage that draws the scenes."""
        return (ScenesStage(split=self.split, size=self.size, seed=self.seed),)

    def files(self, store: Store) -> LlavaFiles:
        """The drawn scenes, in LLaVA format."""
        folder = store.verified(self.stages[0])
        return LlavaFiles(folder / "annotations.json", folder / "images", TaskRule())


@component
class DigitScenes(DrawnScenes, PoolSource):
    """The built-in pool."""

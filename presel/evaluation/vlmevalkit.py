"""Benchmarks by VLMEvalKit, which the user runs; its CSV files are read."""

import csv
import sys
from io import StringIO
from pathlib import Path
from typing import Annotated

from pydantic import Field

from presel.component import component
from presel.errors import PreselError
from presel.evaluation.external import Column, ExternalBenchmarks, read_text, result_files
from presel.evaluation.scores import Scores


@component
class VlmEvalColumn(Column):
    """A column of the score table, see also `Column`.

    Attributes:
        file: End of the name of VLMEvalKit's file, as in `POPE_score.csv`.
        column: Column of that file.
        row: Value of the file's first column in the row to read; None if there is only one row.
    """

    file: Annotated[str, Field(pattern=r"\.csv$")]
    column: str
    row: str | None = None


@component
class VlmEvalKit(ExternalBenchmarks):
    """VLMEvalKit, which the user runs; its CSV files are read.

    Attributes:
        columns: The numbers to read, by the name of the column.
    """

    columns: Annotated[dict[str, VlmEvalColumn], Field(min_length=1)]

    def check(self) -> None:
        """There is nothing to check, since the user runs the program."""

    def run(self, model: Path, folder: Path, log: Path) -> None:
        """Tells the user to run the program."""
        raise PreselError(
            f"VLMEvalKit is not run from here; evaluate the model in {model} with it, put its files "
            f"({', '.join(dict.fromkeys(column.file for column in self.columns.values()))}) under {folder}, "
            "and run this command again"
        )

    def scores(self, folder: Path) -> Scores | None:
        """Reads the CSV files, which may be in subfolders."""
        if not result_files(folder, "*.csv"):
            return None
        return {name: self._score(name, column, folder) for name, column in self.columns.items()}

    def _score(self, name: str, column: VlmEvalColumn, folder: Path) -> float:
        # VLMEvalKit also links each file from the parent folder.
        found = result_files(folder, "*.csv")
        files = list({file.resolve() for file in found if file.name.endswith(column.file)})
        if len(files) != 1:
            raise PreselError(
                f"{folder}: {len(files) or 'no'} files end in {column.file}, the column '{name}'; leave one, "
                "or take the column out of evaluation.columns"
            )
        header, *rows = _csv_rows(files[0])
        place = f"column '{column.column}'"
        if column.row is not None:
            rows = [row for row in rows if row[0] == column.row]
            place += f" of row '{column.row}'"
        if header.count(column.column) != 1 or len(rows) != 1:
            raise PreselError(
                f"{files[0]}: there is not one number in {place}, for the column '{name}' ({len(rows)} rows "
                f"with {', '.join(header)}); correct evaluation.columns.{name}, or the file"
            )
        return column.score(rows[0][header.index(column.column)], name, files[0], place)


def _csv_rows(file: Path) -> list[list[str]]:
    """Reads the rows of a CSV file, header first."""
    # Other columns may contain answers of any length.
    csv.field_size_limit(sys.maxsize)
    try:
        rows = [row for row in csv.reader(StringIO(read_text(file)), strict=True) if row]
    except csv.Error as error:
        raise PreselError(f"{file}: this is no complete CSV file ({error}); export it again") from error
    if len({len(row) for row in rows}) != 1:
        why = "its rows differ in length" if rows else "it is empty"
        raise PreselError(f"{file}: this is no complete CSV file ({why}); export it again")
    return rows

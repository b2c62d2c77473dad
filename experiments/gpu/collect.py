"""Prints the rows of all parts as tables, and writes them to `measured.json`, for `measure.sh`."""

import json
import sys
from pathlib import Path

from common import Row, machine, table


def main() -> None:
    """Reads the rows in the folder."""
    folder = Path(sys.argv[1])
    benchmarks: dict[str, list[Row]] = {}
    for line in (folder / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        benchmarks.setdefault(row.pop("benchmark"), []).append(row)
    for name, rows in benchmarks.items():
        print(f"\n{name}\n{table(rows)}")
    (folder / "measured.json").write_text(json.dumps({"machine": machine(), **benchmarks}, indent=1))


if __name__ == "__main__":
    main()

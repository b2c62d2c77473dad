"""Prints the rows of all parts as tables, and writes them to `measured.json`, for `measure.sh`."""

import json
import sys
from pathlib import Path

from common import Row, machine, table


def main() -> None:
    """Reads `rows.jsonl` in the folder given."""
    folder = Path(sys.argv[1])
    parts: list[Row] = []
    rows: list[Row] = []
    for line in (folder / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "part" not in row:
            rows.append(row)
            continue
        print(f"\n{row['part']}: {row['seconds']} s, status {row['status']}\n{table(rows)}")
        parts.append(row | {"rows": rows})
        rows = []
    (folder / "measured.json").write_text(json.dumps({"machine": machine(), "parts": parts}, indent=1))


if __name__ == "__main__":
    main()

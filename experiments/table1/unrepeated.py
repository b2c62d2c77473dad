"""Draws the digit scenes' pool without near-duplicates: do central picks lose because of them?

`python -m experiments.table1.unrepeated --out outputs/unrepeated`; for grouped_by_length/README.md.
"""

import argparse
from pathlib import Path

from presel.data.digits.dataset import write_pool

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=36_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_pool(arguments.out, arguments.size, arguments.seed, repeated=0.0)

"""Is A better than B? The difference of two score files' AP and mAP, with paired bootstrap intervals over images.

python eval/compare.py a.parquet b.parquet --data DEVKIT --split val
python eval/compare.py a.csv b.csv --labels labels.csv --classes cat,dog --json difference.json
"""

import sys

import tyro

from data.cli import run
from eval.options import CompareConfig


def main(argv: list[str]) -> int:
    """Parse, compare, print the table and the verdict."""
    config = tyro.cli(CompareConfig, args=argv, prog="eval/compare.py", description=__doc__)
    from eval.comparison import compare_files

    compare_files(config)
    return 0


def cli() -> None:
    """The console script `tailacc-compare`."""
    raise SystemExit(run(main, sys.argv[1:]))


if __name__ == "__main__":
    cli()

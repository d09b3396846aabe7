"""Judges a score file: AP, mAP with intervals, Tailacc and galleries, as metrics.json and a page to look at.

    python eval/report.py --scores scores.parquet --data DEVKIT --split val --out DIR
    python eval/report.py --scores scores.csv --labels labels.csv --out DIR --classes cat,dog

With no arguments: runs/scores.parquet against the val split of $VOC_ROOT or the synthetic devkit.
"""

import sys

import tyro

from data.cli import run
from eval.options import ReportConfig


def main(argv: list[str]) -> int:
    """Parse, write the report, print the table and the paths."""
    config = tyro.cli(ReportConfig, args=argv, prog="eval/report.py", description=__doc__)
    from eval.build import write_report

    write_report(config)
    return 0


def cli() -> None:
    """The console script `tailacc-report`."""
    raise SystemExit(run(main, sys.argv[1:]))


if __name__ == "__main__":
    cli()

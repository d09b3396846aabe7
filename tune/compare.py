"""Compare runs as a person would in the MLflow UI, with what is noise: parameters, metrics and classes.

    python tune/compare.py 3f2a91c0 77b01d4e               # MLflow run ids, or their first 6 characters or more
    python tune/compare.py "tiny_cnn asl lr 0.008" runs/train/first        # a run's name; a run folder
    python tune/compare.py --search runs/tune/first        # the five best trials of a search

Every run is compared with the first. The store is MLFLOW_TRACKING_URI, or mlflow.db of the current folder.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from data.cli import run


@dataclass(frozen=True)
class CompareOptions:
    """Compare runs as a person would in the MLflow UI, with what is noise: parameters, metrics and classes.

    Attributes:
        runs: two or more: an MLflow run id (the first 6 characters are enough), the name of a run, or a run
            folder. Every run is compared with the first.
        search: folder of a search: its five best trials.
        classes: names of the classes to show, separated by commas; "" = all. The mAP is that of all.
        json: file to write every figure to.
    """

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    search: Path | None = None
    classes: str = ""
    json: Path | None = None


def main(arguments: list[str]) -> int:
    """Parse, find the runs, print the tables."""
    options = tyro.cli(CompareOptions, args=arguments, prog="tune/compare.py")
    from tune.compared_runs import find_runs
    from tune.comparing import compare_runs, print_comparison, write_comparison

    wanted = tuple(name.strip() for name in options.classes.split(",") if name.strip())
    compared = compare_runs(find_runs(options.runs, options.search), wanted)
    print_comparison(compared)
    if options.json:
        write_comparison(options.json, compared)
    return 0


def cli() -> None:
    """The console script `tailacc-compare-runs`."""
    sys.exit(run(main))


if __name__ == "__main__":
    cli()

"""The VOC evaluation server's files from a score file, checked before they are sent.

python eval/submit.py --scores scores.parquet --data DEVKIT --split test --comp comp2 --out results.tar.gz
python eval/submit.py --check results.tar.gz --data DEVKIT --split test
"""

import sys

import tyro

from data.cli import run
from eval.options import SubmitConfig


def main(argv: list[str]) -> int:
    """Parse, write the archive or only check one, and say what to do with it."""
    config = tyro.cli(SubmitConfig, args=argv, prog="eval/submit.py", description=__doc__)
    from eval.submission import submit

    submit(config)
    return 0


def cli() -> None:
    """The console script `tailacc-submit`."""
    raise SystemExit(run(main, sys.argv[1:]))


if __name__ == "__main__":
    cli()

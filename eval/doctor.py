"""What others may have meant by "mAP": the well-known other figures on a score file, to explain a published number.

python eval/doctor.py --scores scores.csv --labels labels.csv --published 0.92
python eval/doctor.py --scores scores.parquet --data DEVKIT --split val
"""

import sys

import tyro

from data.cli import run
from eval.options import DoctorConfig


def main(argv: list[str]) -> int:
    """Parse, compute the figures, print the table."""
    config = tyro.cli(DoctorConfig, args=argv, prog="eval/doctor.py", description=__doc__)
    from eval.consulting import consult

    consult(config)
    return 0


def cli() -> None:
    """The console script `tailacc-doctor`."""
    raise SystemExit(run(main, sys.argv[1:]))


if __name__ == "__main__":
    cli()

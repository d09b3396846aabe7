"""Train one configuration.

    accelerate launch train/main.py --preset baseline --data.root DEVKIT --out runs/train/first
    python train/main.py --preset smoke          # seconds on a CPU

With no arguments: preset "demo" on $VOC_ROOT or the synthetic devkit, into runs/train/<time>.
"""

import sys

from data.cli import run


def main(arguments: list[str]) -> int:
    """Parse, train, and say where the results are."""
    from train.options import parse_train

    config = parse_train(arguments)
    from train.loop import fit
    from train.summary import print_result

    print_result(fit(config))
    return 0


def cli() -> None:
    """The console script `tailacc-train`."""
    sys.exit(run(main))


if __name__ == "__main__":
    cli()

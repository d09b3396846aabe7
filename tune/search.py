"""Search over backbone, loss and learning rate with Ray Tune, every trial in MLflow, the best one registered.

    python tune/search.py --preset quick --data.root DEVKIT --out runs/tune/first
    python tune/search.py --out runs/tune/first --resume      # after Ctrl-C or a crash
    python tune/search.py                                     # quick, on the synthetic devkit

Ctrl-C ends the search in a state that --resume takes up again.
"""

import sys

from data.cli import run


def main(arguments: list[str]) -> int:
    """Parse, search, export and register the best, and say where the results are."""
    from tune.options import parse_search

    config = parse_search(arguments)
    from tune.champion import conclude
    from tune.run import search

    return conclude(config, search(config))


def cli() -> None:
    """The console script `tailacc-tune`."""
    sys.exit(run(main))


if __name__ == "__main__":
    cli()

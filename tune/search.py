"""Search over backbone, loss and learning rate with Ray Tune, every trial in MLflow, the best one registered.

    python tune/search.py --preset quick --data.root DEVKIT --out runs/tune/first
    python tune/search.py --out runs/tune/first --resume      # after Ctrl-C or a crash
    python tune/search.py                                     # quick, on the synthetic devkit

Ctrl-C ends the search in a state that --resume takes up again.
"""

import sys
import time

from data.cli import run


def main(arguments: list[str]) -> int:
    """Parse, search, export and register the best, and say where the results are."""
    begun = time.time()
    from tune.options import parse_search

    config = parse_search(arguments)
    from tune.placement import ray_for

    with ray_for(config):
        from tune.run import search

        outcome = search(config, begun)
    from tune.champion import conclude

    return conclude(config, outcome)


def cli() -> None:
    """The console script `tailacc-tune`."""
    sys.exit(run(main))


if __name__ == "__main__":
    cli()

"""The command line of a search: preset, then flags."""

import argparse
import dataclasses
import time
from pathlib import Path

from data.errors import unknown
from tune.presets import DEFAULT_PRESET, PRESETS
from tune.space import SearchConfig

_DESCRIPTION = (
    "Search over backbone, loss and learning rate. First choose a starting point with --preset "
    f"{{{','.join(PRESETS)}}} (default {DEFAULT_PRESET}); every flag below overrides one of its settings."
)


def parse_search(arguments: list[str]) -> SearchConfig:
    """The configuration of a command line, with `out` set."""
    import tyro

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=DEFAULT_PRESET)
    chosen, rest = first.parse_known_args(arguments)
    if chosen.preset not in PRESETS:
        raise unknown("preset", chosen.preset, PRESETS)
    base = PRESETS[chosen.preset]()
    config = tyro.cli(SearchConfig, args=rest, default=base, prog="tune/search.py", description=_DESCRIPTION)
    if config.out is None:
        config = dataclasses.replace(config, out=Path("runs/tune") / time.strftime("%Y%m%d-%H%M%S"))
    return config

"""The command line of a training run: preset, then file, then flags; the resolved configuration is printed."""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from train.config import TrainConfig
from train.config_files import read_config, to_dict
from train.presets import DEFAULT_PRESET, PRESETS, preset

_DESCRIPTION = (
    "Train one configuration. First choose a starting point with --preset "
    f"{{{','.join(PRESETS)}}} (default {DEFAULT_PRESET}) and, if wanted, --config FILE (.json or .toml); "
    "every flag below overrides one of its settings."
)


def parse_train(arguments: list[str]) -> TrainConfig:
    """The resolved configuration of a command line, with `out` set."""
    import tyro

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=DEFAULT_PRESET)
    first.add_argument("--config", type=Path)
    chosen, rest = first.parse_known_args(arguments)
    base = preset(chosen.preset)
    if chosen.config:
        base = read_config(chosen.config, base)
    config = tyro.cli(TrainConfig, args=rest, default=base, prog="train/main.py", description=_DESCRIPTION)
    if config.out is None:
        config = dataclasses.replace(config, out=Path("runs/train") / time.strftime("%Y%m%d-%H%M%S"))
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"configuration (preset {chosen.preset}):", file=sys.stderr)
        print(json.dumps(to_dict(config), indent=2), file=sys.stderr, flush=True)
    return config

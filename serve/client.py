"""The client of the scoring server.

python serve/client.py score                                  the default devkit -> runs/scores.parquet
python serve/client.py score --server HOST:8001,HOST2:8001 --images DIR --out scores.parquet
python serve/client.py score --images DIR --send pixels       decode and resize here instead of there
python serve/client.py classify photo.jpg                     labels for a person
"""

import asyncio
import os
from typing import Annotated

import tyro

from data.cli import run
from serve.config import ClassifyConfig, ScoreConfig

Score = Annotated[
    ScoreConfig, tyro.conf.subcommand("score", description="Score a set of images into a file.")
]
Classify = Annotated[
    ClassifyConfig, tyro.conf.subcommand("classify", description="Print the labels of a few images.")
]


def main(argv: list[str]) -> int:
    """Run one subcommand; returns the exit code."""
    config: ScoreConfig | ClassifyConfig = tyro.cli(Score | Classify, args=argv, description=__doc__)
    # Of gRPC's own lines; what they are about is in our messages. It reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Imported here: `--help` should not wait for gRPC.
    if isinstance(config, ScoreConfig):
        from serve.scoring import score

        return asyncio.run(score(config))
    from serve.labelling import classify

    return asyncio.run(classify(config))


def cli() -> None:
    """The console script."""
    raise SystemExit(run(main))


if __name__ == "__main__":
    cli()

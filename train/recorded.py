"""What a training run tells MLflow when it begins."""

import json
from collections.abc import Mapping
from pathlib import Path

from train.config import TrainConfig
from train.config_files import flatten, to_dict
from train.display import run_name
from train.examples import Examples
from train.revision import source_revision
from train.tracking import MlflowTracker


def open_tracker(
    config: TrainConfig, out: Path, examples: Examples, tags: Mapping[str, str], run_id: str
) -> MlflowTracker:
    """The tracker of a run with its settings and its data set.

    Args:
        config: of the run.
        out: its folder.
        examples: what it learns from.
        tags: further ones, such as its parent.
        run_id: of the MLflow run to go on with where the folder has no outbox; "" = a new one.
    """
    labels = examples.labels
    counts = {"train": len(examples.train), "selection": len(examples.selection)}
    return MlflowTracker(
        out,
        config.tracking.experiment,
        config.tracking.run_name or run_name(config),
        flatten(to_dict(config)),
        {
            "name": labels.name,
            "digest": labels.fingerprint(),
            "source": str(labels.paths[0].parent.resolve()),
            "profile": json.dumps(counts | {"classes": len(labels.classes)}),
        },
        {"source_revision": source_revision(), **tags},
        run_id,
        config.tracking.wait,
    )

"""Results go back to where the model came from: its MLflow run gets the served figures and the report.

The run is found from what the score file says of its model: the registered name and version, or the hash of the
model file, which the export notes on its run.
"""

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.judge import Judgement
from train.tracking import CHEAPER_HASH_TAGS, HASH_TAG

FOLDER = "served"
_HASH = re.compile(r"[0-9a-f]{64}")
_NOT_ALLOWED = re.compile(r"[^\w\-. :]", re.ASCII)


def find_run(store: Any, metadata: Mapping[str, str]) -> tuple[str, str]:
    """The MLflow run of the model that gave the scores, or "" and why it is not known.

    Args:
        store: an `MlflowClient`, or None.
        metadata: of the score file: model_name, model_version, model_hash.
    """
    digest, version = metadata.get("model_hash", ""), metadata.get("model_version", "")
    if not _HASH.fullmatch(digest):
        return "", "the score file names no model"
    if store is None:
        return "", "there is no MLflow store here (MLFLOW_TRACKING_URI names another)"
    from mlflow.exceptions import MlflowException

    try:
        if version not in ("", "file"):
            found = store.get_model_version(metadata.get("model_name", ""), version)
            if found.tags.get(HASH_TAG, digest) == digest:
                return str(found.run_id), ""
        experiments = [experiment.experiment_id for experiment in store.search_experiments()]
        for tag in (HASH_TAG, *CHEAPER_HASH_TAGS.values()):
            if runs := store.search_runs(experiments, f"tags.`{tag}` = '{digest}'", max_results=1):
                return str(runs[0].info.run_id), ""
    except MlflowException as error:
        return "", f"the MLflow store does not tell: {str(error).splitlines()[0]}"
    return "", f"no MLflow run here exported the model {digest[:12]}"


def served_metrics(judgement: Judgement) -> Iterator[tuple[str, float]]:
    """(name under served/, value) of each figure; a class without AP is left out."""
    means = judgement.overall
    for name, kind in (("map", "voc2010"), ("map_voc2007", "voc2007"), ("map_sklearn", "sklearn")):
        yield name, means.map[kind]  # type: ignore[index]
    yield from zip(("map_low", "map_high"), means.interval["voc2010"], strict=True)
    yield "micro_map", judgement.micro_map
    yield "tailacc_area", means.tail_area
    yield "ece", means.ece
    yield "accuracy", means.accuracy
    yield "always_no", means.always_no
    yield "cf1", means.f1.class_f1
    yield "of1", means.f1.overall_f1
    yield "precision_at_50", means.precision_at_50
    yield "images", len(judgement.joined.image_ids)
    for name, ap, ece in zip(judgement.joined.classes, judgement.ap["voc2010"], judgement.ece, strict=True):
        plain = _NOT_ALLOWED.sub("_", name)
        yield f"ap/{plain}", float(ap)
        yield f"ece/{plain}", float(ece)


def feed_back(
    store: Any, run_id: str, judgement: Judgement, artifacts: Iterable[Path], precision: str = ""
) -> str:
    """Write the figures and the files to the run; a later report replaces them. Returns the outcome in words.

    Those of a cheaper model have a place of their own, such as served_int8/, beside the float32 model's. A store
    that refuses is said, not raised: the report itself is written already.
    """
    from mlflow.entities import Metric, RunTag
    from mlflow.exceptions import MlflowException

    folder = f"{FOLDER}_{precision}" if precision else FOLDER
    now = int(time.time() * 1000)
    metrics = [
        Metric(f"{folder}/{name}", float(value), now, 0)
        for name, value in served_metrics(judgement)
        if math.isfinite(value)
    ]
    joined = judgement.joined
    tags = [
        RunTag(f"{folder}.labels", f"{joined.name} {joined.fingerprint}"),
        RunTag(f"{folder}.images", f"{len(joined.image_ids)} of {joined.labelled}"),
    ]
    try:
        for start in range(0, len(metrics), 1000):  # MLflow's largest batch
            store.log_batch(run_id, metrics=metrics[start : start + 1000])
        store.log_batch(run_id, tags=tags)
        for path in artifacts:
            store.log_artifact(run_id, str(path), folder)
    except (MlflowException, OSError) as error:
        return f"the MLflow run {run_id} could not be written: {str(error).splitlines()[0]}"
    return f"{len(metrics)} figures under {folder}/ in the MLflow run {run_id}"

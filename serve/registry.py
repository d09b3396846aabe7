"""Where a model comes from: a file, or MLflow's model registry (imported only when it is asked for)."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """An ONNX file at hand. `name` is the registered name, "" for a plain file; `version` is then "file"."""

    path: Path
    name: str = ""
    version: str = "file"


@contextmanager
def open_source(model: str) -> Iterator[ModelSource]:
    """The file of `model`, which is a path, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    A registered model's file lies in a temporary folder and is gone when the context ends.

    Raises:
        InputError: nothing is there; the message says how to get one.
    """
    if not model.startswith("models:"):
        path = Path(model)
        if not path.is_file():
            raise InputError(
                f"no model file at {model}; --model takes a .onnx file (python train/export.py writes one), "
                "models:/NAME@ALIAS or models:/NAME/VERSION"
            )
        yield ModelSource(path)
        return
    match = _URI.fullmatch(model)
    if not match:
        raise InputError(f"--model must be models:/NAME@ALIAS or models:/NAME/VERSION, got '{model}'")
    with tempfile.TemporaryDirectory(prefix="tailacc-model-") as folder:
        version = _download(match["name"], match["alias"], match["version"], Path(folder))
        files = sorted(Path(folder).rglob("*.onnx"))
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise InputError(f"{model} must hold one .onnx file, found {found}")
        yield ModelSource(files[0], match["name"], version)


def _download(name: str, alias: str | None, version: str | None, folder: Path) -> str:
    """Fetch the files of a registered model into `folder`; returns its version."""
    store = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    advice = (
        "train one (python tune/search.py registers its best as champion), or give a file: --model model.onnx"
    )
    local = store.removeprefix("sqlite:///")
    if local != store and not Path(local).is_file():
        # Asking MLflow would create an empty data base there.
        raise InputError(
            f"no MLflow store at {store} in {Path.cwd()} (MLFLOW_TRACKING_URI names another); {advice}"
        )
    # MLflow's own defaults try a server that is away for four minutes without a word.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow.exceptions import MlflowException

    what = f"alias '{alias}'" if alias else f"version {version}"
    client = mlflow.MlflowClient(store, store)
    try:
        found = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, version)
        )
        mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{name}/{found.version}",
            dst_path=str(folder),
            tracking_uri=store,
            registry_uri=store,
        )
    except MlflowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"no model '{name}' with {what} in {store}: {reason}; {advice}") from error
    return str(found.version)

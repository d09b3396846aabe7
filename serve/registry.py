"""Where a model comes from: a file, an MLflow run, or MLflow's model registry (imported only when it is asked for)."""

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError

_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
_RUN = re.compile(r"runs:/(?P<run>[0-9a-f]{32})(?:/(?P<artifact>.+))?")
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)=(?P<source>.+)")
_FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID"
# What MLflow calls the model in a run (`train.publish.register_model`).
_ARTIFACT = "model"
# The tag of a version with the SHA-256 of its file, which the same function writes.
_DIGEST = "model.sha256"
DEFAULT_NAME = "tailacc"


class RegistryError(InputError):
    """MLflow is away, or does not have what was asked for. Later it may."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """An ONNX file at hand. `name` is the registered name, "" for a plain file; `version` is then "file"."""

    path: Path
    name: str = ""
    version: str = "file"


def split_models(text: str) -> list[tuple[str, str]]:
    """`--model` as (name, source) pairs: `A`, `NAME=A`, or several of these with commas between.

    A source without a name is called after its registered name, or "tailacc".

    Raises:
        InputError: two models have the same name.
    """
    out: list[tuple[str, str]] = []
    for part in [text] if Path(text).is_file() else text.split(","):
        match = None if Path(part).is_file() else _NAMED.fullmatch(part.strip())
        source = match["source"] if match else part.strip()
        registered = _REGISTERED.fullmatch(source)
        name = match["name"] if match else registered["name"] if registered else DEFAULT_NAME
        if any(name == other for other, _ in out):
            raise InputError(
                f"--model has two models of the name '{name}'; name them: --model NAME=A,NAME2=B"
            )
        out.append((name, source))
    return out


@contextmanager
def open_source(model: str, below: str | None = None) -> Iterator[ModelSource]:
    """The file of `model`: a path, `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or `runs:/ID[/ARTIFACT]`.

    What comes from MLflow lies in a temporary folder in the folder `below` (None: where the system has them) and is
    gone when the context ends.

    Raises:
        RegistryError: MLflow is away, or does not have it.
        InputError: there is no file, or none that could be a model; the message says how to get one.
    """
    if not is_fetched(model):
        path = Path(model)
        if not path.is_file():
            raise InputError(
                f"no model file at {model}; --model takes a .onnx file (python train/export.py writes one), {_FORMS}"
            )
        yield ModelSource(path)
        return
    registered, run = _REGISTERED.fullmatch(model), _RUN.fullmatch(model)
    if not (registered or run):
        raise InputError(f"--model must be {_FORMS}, got '{model}'")
    digest = ""
    with tempfile.TemporaryDirectory(prefix="tailacc-model-", dir=below) as folder:
        if registered:
            name = registered["name"]
            version, digest = _download_registered(
                name, registered["alias"], registered["version"], Path(folder)
            )
        elif run:
            name, version = "", run["run"]
            _download_run(run["run"], run["artifact"] or _ARTIFACT, Path(folder))
        files = sorted(Path(folder).rglob("*.onnx"))
        if not files:  # MLflow says no more where the store of the files is away
            raise RegistryError(f"{model} must hold one .onnx file, found none")
        if len(files) != 1:
            found = ", ".join(file.name for file in files)
            raise InputError(f"{model} must hold one .onnx file, found {found}")
        found = hashlib.sha256(files[0].read_bytes()).hexdigest() if digest else ""
        if found != digest:
            raise RegistryError(
                f"{model}: the file has SHA-256 {found}, it was registered with {digest}: it is damaged or was "
                "replaced; register it again"
            )
        yield ModelSource(files[0], name, version)


def is_fetched(model: str) -> bool:
    """Whether `model` is in MLflow, and no file."""
    return model.startswith(("models:", "runs:"))


def follows_alias(model: str) -> bool:
    """Whether `model` is `models:/NAME@ALIAS`, which may name another version tomorrow."""
    registered = _REGISTERED.fullmatch(model)
    return bool(registered and registered["alias"])


def pinned(model: str, version: str) -> str:
    """`models:/NAME@ALIAS` as the version that was found for it."""
    return f"{model.rpartition('@')[0]}/{version}"


def store_address() -> str:
    """Of MLflow: MLFLOW_TRACKING_URI, or its own default, a file in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def find_version(model: str) -> str:
    """The version that `models:/NAME@ALIAS` means now. Raises `RegistryError`."""
    registered = _REGISTERED.fullmatch(model)
    if not (registered and registered["alias"]):
        raise InputError(f"only models:/NAME@ALIAS can be followed, got '{model}'")
    name, alias = registered["name"], registered["alias"]
    store, mlflow = _open_store()
    try:
        found = mlflow.MlflowClient(store, store).get_model_version_by_alias(name, alias)
    except mlflow.exceptions.MlflowException as error:
        raise RegistryError(f"no model '{name}' with alias '{alias}' in {store}: {_reason(error)}") from error
    return str(found.version)


def _download_registered(name: str, alias: str | None, version: str | None, folder: Path) -> tuple[str, str]:
    """Fetch the files of a registered model into `folder`; returns its version and its SHA-256, "" where not told."""
    store, mlflow = _open_store()
    what = f"alias '{alias}'" if alias else f"version {version}"
    client = mlflow.MlflowClient(store, store)
    try:
        found = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, version)
        )
        _fetch(mlflow, f"models:/{name}/{found.version}", store, folder)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise RegistryError(
            f"no model '{name}' with {what} in {store}: {_reason(error)}; {_ADVICE}"
        ) from error
    return str(found.version), found.tags.get(_DIGEST, "")


def _download_run(run: str, artifact: str, folder: Path) -> None:
    """Fetch an artifact of a run into `folder`."""
    store, mlflow = _open_store()
    try:
        _fetch(mlflow, f"runs:/{run}/{artifact}", store, folder)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise RegistryError(
            f"no model '{artifact}' in run {run} in {store}: {_reason(error)}; log one: "
            "python train/export.py --run DIR --register"
        ) from error


_ADVICE = (
    "train one (python tune/search.py registers its best as champion), or give a file: --model model.onnx"
)


def _open_store() -> tuple[str, Any]:
    """The store's address and the mlflow module."""
    store = store_address()
    local = store.removeprefix("sqlite:///")
    if local != store and not Path(local).is_file():
        # Asking MLflow would create an empty data base there.
        raise RegistryError(
            f"no MLflow store at {store} in {Path.cwd()} (MLFLOW_TRACKING_URI names another); {_ADVICE}"
        )
    # MLflow's own defaults try a server that is away for four minutes without a word.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Its warnings of each attempt say what the error at the end says, and would come again at every look at an alias.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    import mlflow
    import mlflow.exceptions

    return store, mlflow


def _fetch(mlflow: Any, uri: str, store: str, folder: Path) -> None:
    mlflow.artifacts.download_artifacts(
        artifact_uri=uri, dst_path=str(folder), tracking_uri=store, registry_uri=store
    )


def _reason(error: Exception) -> str:
    first, *rest = str(error).splitlines()
    # Of a download that failed MLflow says why in the last line: that the disk is full, or that the file is gone.
    return " ".join((first, rest[-1]) if rest and first.endswith(":") else (first,)).rstrip(".")

import shutil
from pathlib import Path

import pytest

from data.errors import InputError
from serve.registry import open_source, split_models


def test_open_source__a_file(model_file):
    with open_source(str(model_file)) as source:
        assert (source.path, source.name, source.version) == (model_file, "", "file")


@pytest.fixture(scope="module")
def store(tmp_path_factory, model_file, new_store):
    """A store with two versions of "tailacc", the second one "champion", and "empty" without a model."""
    mlflow = pytest.importorskip("mlflow", reason="MLflow is in the serve extra")
    folder = tmp_path_factory.mktemp("store")
    uri = new_store(folder)
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("test", artifact_location=(folder / "artifacts").as_uri())
    for name, files in (
        ("tailacc", ("MLmodel",)),
        ("tailacc", ("model.onnx", "MLmodel")),
        ("empty", ("MLmodel",)),
    ):
        run = client.create_run(experiment).info
        flavour = Path(run.artifact_uri.removeprefix("file://")) / "model"
        flavour.mkdir(parents=True)
        for file in files:
            shutil.copy(model_file, flavour / file)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        client.create_model_version(name, f"{run.artifact_uri}/model", run.run_id)
    client.set_registered_model_alias("tailacc", "champion", "2")
    return uri


@pytest.mark.parametrize("uri", ["models:/tailacc@champion", "models:/tailacc/2"])
def test_open_source__the_registry(store, monkeypatch, model_file, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with open_source(uri) as source:
        assert (source.name, source.version, source.path.name) == ("tailacc", "2", "model.onnx")
        assert source.path.read_bytes() == model_file.read_bytes()
        path = source.path
    assert not path.exists()


@pytest.mark.parametrize("artifact", ["", "/model"])
def test_open_source__a_run(store, monkeypatch, model_file, artifact):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run = mlflow.MlflowClient(store, store).get_model_version("tailacc", "2").run_id
    with open_source(f"runs:/{run}{artifact}") as source:
        assert (source.name, source.version) == ("", run)
        assert source.path.read_bytes() == model_file.read_bytes()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("model.onnx", [("tailacc", "model.onnx")]),
        ("models:/birds@champion", [("birds", "models:/birds@champion")]),
        ("a.onnx, b=b.onnx", [("tailacc", "a.onnx"), ("b", "b.onnx")]),
        ("x=models:/birds/2,y=runs:/ID", [("x", "models:/birds/2"), ("y", "runs:/ID")]),
    ],
)
def test_split_models__names_and_sources(text, wanted):
    assert split_models(text) == wanted


def test_split_models__a_file_with_commas_in_its_name_is_one(tmp_path):
    path = tmp_path / "lr=0.1,seed=2.onnx"
    path.touch()
    assert split_models(str(path)) == [("tailacc", str(path))]


def test_split_models__two_of_one_name():
    with pytest.raises(InputError, match="two models of the name 'tailacc'; name them: --model NAME=A"):
        split_models("a.onnx,b.onnx")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/tailacc@best", "no model 'tailacc' with alias 'best' in sqlite:"),
        ("models:/tailacc/9", "no model 'tailacc' with version 9 in sqlite:"),
        ("models:/other@champion", "no model 'other' with alias 'champion' in sqlite:"),
        ("models:/empty/1", r"must hold one \.onnx file, found none"),
        (f"runs:/{'0' * 32}", f"no model 'model' in run {'0' * 32} in sqlite:"),
        ("runs:/best", "must be models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID, got 'runs:/best'"),
        (
            "models:/tailacc",
            "must be models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID, got 'models:/tailacc'",
        ),
    ],
)
def test_open_source__what_is_not_there_is_named(store, monkeypatch, uri, words):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(InputError, match=words), open_source(uri):
        pass


def test_open_source__no_store_makes_no_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(InputError, match=r"no MLflow store at sqlite:///mlflow\.db in"),
        open_source("models:/a@b"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []

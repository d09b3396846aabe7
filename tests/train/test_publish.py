import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest

from data.errors import InputError
from data.model_file import INPUT_NAME, LOGIT_NAME, SCORE_NAME
from serve.registry import open_source
from train import checkpoint
from train.config import ScheduleConfig, TrackingConfig, TrainConfig
from train.loop import fit
from train.publish import (
    CARD,
    Exported,
    aliases,
    export_run,
    load_best,
    register_model,
    registry,
    set_alias,
    sha256,
    summary,
)

_trained: list[Exported] = []  # by the first test that needs it: training and export take seconds


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("publish")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", new_store(folder))
        yield folder


@pytest.fixture
def exported(smoke: TrainConfig, home: Path) -> Exported:
    if not _trained:
        run = home / "run"
        fit(dataclasses.replace(smoke, out=run, tracking=TrackingConfig(), schedule=ScheduleConfig(epochs=1)))
        _trained.append(export_run(run, home / "model.onnx"))
    return _trained[0]


def test_register_model__logs_what_a_person_needs_to_use_it(exported: Exported) -> None:
    store, info, scores = registry(), exported.info, exported.scores
    before = store.get_run(info.run_id).info
    version = register_model(exported, "whole", "")
    found = store.get_model_version("whole", version)
    assert (found.run_id, found.description) == (info.run_id, summary(exported))
    assert found.tags["selection_map"] == f"{scores.map():.4f}"
    with open_source(f"models:/whole/{version}") as source:
        assert sha256(source.path) == found.tags["model.sha256"]
    # The run is as it was: neither begun anew nor ended later.
    after = store.get_run(info.run_id)
    assert (after.info.status, after.info.end_time) == (before.status, before.end_time)

    model = store.get_logged_model(found.source.removeprefix("models:/"))
    assert (model.source_run_id, model.experiment_id) == (info.run_id, before.experiment_id)
    # Every figure of the selection part names the model and that part.
    part = exported.examples.labels.subset(exported.examples.selection, "")
    (named,) = [
        entry.dataset
        for entry in after.inputs.dataset_inputs
        if [tag.value for tag in entry.tags] == ["selection"]
    ]
    assert named.digest == part.fingerprint()
    linked = {m.key: m for m in model.metrics if m.dataset_digest == named.digest}
    assert {m.model_id for m in linked.values()} == {model.model_id}
    assert linked["selection/map"].value == pytest.approx(scores.map())
    assert linked["selection/map_low"].value < scores.map() < linked["selection/map_high"].value
    assert {f"selection/ap/{name}" for name in info.classes} <= set(linked)

    loaded = mlflow.pyfunc.load_model(found.source)
    assert loaded.metadata.signature.inputs.input_names() == [INPUT_NAME]
    assert loaded.metadata.signature.outputs.input_names() == [LOGIT_NAME, SCORE_NAME]
    image = exported.examples.cache.pixels[exported.examples.selection[:1]]
    assert np.array_equal(np.array(loaded.input_example[INPUT_NAME], np.uint8), image)
    np.testing.assert_allclose(loaded.predict(loaded.input_example)[LOGIT_NAME], scores.logit[:1], atol=1e-4)


def test_register_model__twice_is_one_version_and_another_file_another(
    exported: Exported, home: Path
) -> None:
    version = register_model(exported, "twice", "")
    models = len(registry().get_run(exported.info.run_id).outputs.model_outputs)
    (home / CARD).write_text(f"of {sha256(exported.path)}")
    assert register_model(exported, "twice", "newest") == version
    assert aliases(registry(), "twice") == {"newest": version}
    assert len(registry().get_run(exported.info.run_id).outputs.model_outputs) == models

    def files(number: str) -> set[str]:
        model = registry().get_model_version("twice", number).source.removeprefix("models:/")
        return {item.path for item in registry().list_logged_model_artifacts(model)}

    assert CARD in files(version)  # it came later, and is of this file
    other = home / "other.onnx"
    other.write_bytes(exported.path.read_bytes())
    import onnx

    proto = onnx.load(other)
    proto.doc_string = "other bytes"
    onnx.save_model(proto, other)
    second = register_model(dataclasses.replace(exported, path=other), "twice", "")
    assert second != version
    assert CARD not in files(second)  # that card is of another file


def test_set_alias__keeps_the_earlier_champion_as_previous(exported: Exported) -> None:
    version = register_model(exported, "kept", "champion")
    assert aliases(registry(), "kept") == {"champion": version}
    register_model(exported, "kept", "champion")
    assert aliases(registry(), "kept") == {"champion": version}  # it is not its own predecessor
    source = registry().get_model_version("kept", version).source
    second = str(registry().create_model_version("kept", source).version)
    set_alias(registry(), "kept", "champion", second)
    assert aliases(registry(), "kept") == {"champion": second, "previous": version}


def test_register_model__what_cannot_be_registered_is_named(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untracked = dataclasses.replace(exported, info=dataclasses.replace(exported.info, run_id=""))
    with pytest.raises(InputError, match="comes from a run that was not tracked"):
        register_model(untracked, "any", "")
    with pytest.raises(InputError, match="must not be empty nor hold / : @ , or quotes, got 'a/b'"):
        register_model(exported, "a/b", "")
    lost = dataclasses.replace(exported, info=dataclasses.replace(exported.info, run_id="0" * 32))
    with pytest.raises(InputError, match="is not in the MLflow store sqlite:"):
        register_model(lost, "any", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no MLflow store in"):
        register_model(exported, "any", "")
    assert list(tmp_path.iterdir()) == []


def test_load_best__finds_the_run_that_answered_after_the_weights_were_saved(
    exported: Exported, home: Path
) -> None:
    run = home / "run"
    state = checkpoint.load(run / checkpoint.BEST)
    checkpoint.save(run / checkpoint.BEST, state | {"run_id": ""})
    assert load_best(run)[1]["run_id"] == exported.info.run_id
    # Averaged weights come with the first member's environment, but they are of no single run.
    (run / checkpoint.HISTORY).rename(run / "away")
    assert load_best(run)[1]["run_id"] == ""
    (run / "away").rename(run / checkpoint.HISTORY)
    checkpoint.save(run / checkpoint.BEST, state)

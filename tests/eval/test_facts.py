"""Facts read from run folders and from a real MLflow store, in the files' own form."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from data.scores import Scores, read_scores
from data.voc import read_voc
from eval.facts import Facts, collect_facts, flatten
from eval.joining import join
from eval.judge import judge
from eval.paper import paper_content
from train.config import DataConfig, TrackingConfig, TrainConfig
from train.config_files import flatten as train_flatten
from train.config_files import to_dict
from train.tracking import HASH_TAG, PARENT_TAG, client, experiment_id

MAPS = (0.2, 0.5, 0.4)
HASH = "ab" * 32


@pytest.fixture
def scores(score_csv: Path) -> Scores:
    return read_scores(score_csv)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without an MLflow store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def with_metadata(scores: Scores, **metadata: str) -> Scores:
    return Scores(scores.classes, scores.image_ids, scores.logit, scores.score, metadata=metadata)


def collect(scores: Scores, devkit: Path, run: Path | None = None, store: Any = None) -> Facts:
    return collect_facts(scores, read_voc(devkit, "val"), run, store)


def test_collect_facts__everything_of_a_run_folder(
    scores: Scores, devkit: Path, run_folder: Path, alone: Path
) -> None:
    facts = collect(scores, devkit, run_folder)
    assert facts.origin == "the run folder run"
    assert facts.run_id == "abc"
    assert facts.config == train_flatten(to_dict(TrainConfig()))
    assert facts.data is not None
    assert (facts.data.train.images, facts.data.selection.images) == (30, 5)
    assert (facts.best_epoch, facts.best_map) == (2, 0.5)
    assert len(facts.history) == 3
    assert facts.parameters == 12345
    assert facts.sessions[0]["hardware"]["cpu"] == "Test CPU"
    assert facts.selected == 2
    assert facts.seen == 0
    assert facts.search is None
    assert facts.tested.counts.images == 12
    assert facts.tested.counts.positives["bicycle"] == 4
    assert facts.tested.counts.ignored["aeroplane"] == 1
    assert not (alone / "mlflow.db").exists()


def test_collect_facts__a_real_run_leaves_nothing_unknown(scores: Scores, devkit: Path, alone: Path) -> None:
    from train.loop import fit
    from train.presets import preset

    data = DataConfig(root=devkit, split="val", size=32, selection=0.4, cache=alone / "cache")
    # float32 as in all other tests: Accelerate keeps the first precision of a process.
    config = replace(preset("smoke"), data=data, batch_size=4, out=alone / "real", precision="float32")
    result = fit(replace(config, tracking=TrackingConfig(enabled=False)))
    facts = collect(scores, devkit, alone / "real")
    assert facts.best_map == pytest.approx(result.best_map)
    assert facts.best_epoch == result.best_epoch
    assert facts.config["model.backbone"] == "tiny_cnn"
    assert facts.data is not None
    # Judged on what it was trained on, which the fingerprint and the selection part both tell.
    assert facts.data.fingerprint == facts.tested.fingerprint
    assert facts.seen == facts.selected == facts.data.selection.images
    assert facts.parameters
    (session,) = facts.sessions
    assert session["hardware"]["cores"] >= 1
    judged = judge(join(scores, read_voc(devkit, "val")), replicates=5)
    text = json.dumps(paper_content(judged.joined, judged, facts))
    assert "judged on images that it was trained or selected on" in text
    # Not of a score file without metadata: the model's hash and version, the server's version.
    assert text.count("not recorded") == 4


def test_collect_facts__judged_selection_images_are_counted(
    scores: Scores, devkit: Path, run_folder: Path, alone: Path
) -> None:
    (run_folder / "selection.csv").write_text("image_id\n2008_000001\n2008_000002\nelse\n")
    assert collect(scores, devkit, run_folder).seen == 2


def test_collect_facts__missing_files_stay_empty(scores: Scores, devkit: Path, alone: Path) -> None:
    run = alone / "old"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(to_dict(TrainConfig())))
    facts = collect(scores, devkit, run)
    assert facts.data is None
    assert facts.parameters is None
    assert facts.best_map is None
    assert facts.history == facts.sessions == ()


def test_collect_facts__unknown_model_says_so_and_makes_no_store(
    scores: Scores, devkit: Path, alone: Path
) -> None:
    facts = collect(with_metadata(scores, model_name="x", model_hash=HASH), devkit)
    assert facts.config == {}
    (note,) = facts.notes
    assert "not recorded" in note
    assert "--run DIR" in note
    assert not (alone / "mlflow.db").exists()


def test_collect_facts__refuses_what_is_no_run_or_another_models_run(
    scores: Scores, devkit: Path, run_folder: Path, alone: Path
) -> None:
    with pytest.raises(InputError, match=r"is not the folder of a training run: it holds no config\.json"):
        collect(scores, devkit, alone)
    other = with_metadata(scores, preprocessing="other")
    with pytest.raises(InputError, match="is not of the model that gave the scores"):
        collect(other, devkit, run_folder)


def test_collect_facts__search_beside_the_run_folder(
    scores: Scores, devkit: Path, run_folder: Path, alone: Path
) -> None:
    trial = alone / "search" / "trials" / "t1"
    trial.parent.mkdir(parents=True)
    run_folder.rename(trial)
    (alone / "search" / "search.json").write_text(json.dumps({"search": {"sampler": "grid", "asha": True}}))
    header = "trial_id,state,backbone,loss,lr,epoch,best_map,reason\n"
    rows = "t2,failed,tiny_cnn,asl,0.1,0,nan,boom\nt1,completed,mobilenet_v2,bce,0.001,3,0.5,\n"
    (alone / "search" / "trials.csv").write_text(header + rows)
    search = collect(scores, devkit, trial).search
    assert search is not None
    assert search.settings == {"search.sampler": "grid", "search.asha": True}
    first, second = search.trials
    assert (first.name, first.state, first.best_map, first.epochs, first.chosen) == (
        "t1",
        "completed",
        0.5,
        3,
        True,
    )
    assert first.settings["optimizer.weight_decay"] == "0.02"
    assert (second.best_map, second.chosen, second.settings["loss.name"]) == (None, False, "asl")


def test_collect_facts__mlflow_run_of_the_model_and_its_search(
    scores: Scores,
    devkit: Path,
    run_folder: Path,
    alone: Path,
    monkeypatch: pytest.MonkeyPatch,
    new_store: Callable[[Path], str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(alone))
    store = client()
    experiment = experiment_id(store, "facts")
    parent = store.create_run(experiment, tags={"kind": "search"}).info.run_id
    store.log_param(parent, "search.sampler", "tpe")
    runs = []
    for lr, maps, state in ((0.1, (0.1,), "pruned"), (0.01, MAPS, "completed")):
        tags = {PARENT_TAG: parent, "trial.state": state, "trial_id": f"lr{lr}"}
        run_id = store.create_run(experiment, tags=tags).info.run_id
        store.log_param(run_id, "optimizer.lr", lr)
        for step, value in enumerate(maps, start=1):
            store.log_metric(run_id, "val/map", value, step=step)
        runs.append(run_id)
    store.set_tag(runs[1], HASH_TAG, HASH)
    for name in ("config.json", "history.csv", "selection.csv", "environment.json"):
        store.log_artifact(runs[1], str(run_folder / name))
    judged = with_metadata(scores, model_name="x", model_version="file", model_hash=HASH)
    with pytest.raises(InputError, match=f"it is MLflow run abc, the model is of {runs[1]}"):
        collect(judged, devkit, run_folder)
    (run_folder / "result.json").unlink()
    assert collect(judged, devkit, run_folder).run_id == runs[1]
    facts = collect(judged, devkit)
    assert facts.run_id == runs[1]
    assert facts.origin == f"the MLflow run {runs[1]}"
    assert facts.config["optimizer.lr"] == 1e-3
    assert facts.best_epoch == 2
    assert facts.search is not None
    assert facts.search.settings["search.sampler"] == "tpe"
    found = [(t.name, t.state, t.epochs, t.best_map, t.chosen) for t in facts.search.trials]
    assert found == [("lr0.01", "completed", 3, 0.5, True), ("lr0.1", "pruned", 1, 0.1, False)]


def test_flatten__as_the_training_names_its_parameters() -> None:
    nested = to_dict(TrainConfig())
    assert flatten(nested) == train_flatten(nested)

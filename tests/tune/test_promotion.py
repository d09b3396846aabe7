"""Champion, previous and rollback, with real runs in a real registry."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.errors import InputError
from train.config import DataConfig, TrainConfig
from train.loop import fit
from train.presets import preset
from train.publish import Exported, aliases, export_run, register_model, registry
from tune.card import write_card
from tune.promotion import promote, rollback

NAME = "squares"
SCRIPT = str(Path(__file__).resolve().parents[2] / "tune" / "promote.py")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def models(store: Path, devkit: Path) -> dict[str, Exported]:
    """Two seeds of one setting, and a run that held out other images."""
    base = preset("smoke")
    data = DataConfig(root=devkit, size=32, cache=store / "cache", selection=0.6)

    def exported(name: str, **changed: object) -> Exported:
        config: TrainConfig = dataclasses.replace(base, data=data, batch_size=16, out=store / name)
        fit(dataclasses.replace(config, **changed))  # type: ignore[arg-type]
        return export_run(store / name, store / f"{name}.onnx")

    other = dataclasses.replace(data, selection_seed=5)
    return {"a": exported("a"), "b": exported("b", seed=1), "other": exported("other", data=other)}


def test_promotion__from_the_first_champion_to_a_rollback(models: dict[str, Exported], store: Path) -> None:
    first = register_model(models["a"], NAME, "")
    assert register_model(models["a"], NAME, "") == first  # the same file keeps its version
    examples = models["a"].examples
    assert not promote(NAME, first, "never", examples).promoted
    done = promote(NAME, first, "if-better", examples)
    assert (done.promoted, done.reason) == (True, "the first champion")

    second = register_model(models["b"], NAME, "")
    judged = promote(NAME, second, "if-better", examples)
    assert judged.paired is not None
    assert judged.promoted == (judged.paired.low > 0)
    assert f"of version {first} on the same {len(examples.selection)} images" in judged.reason
    tags = registry().get_model_version(NAME, second).tags
    assert (
        float(tags["promotion.low"]) <= float(tags["promotion.difference"]) <= float(tags["promotion.high"])
    )

    if not judged.promoted:
        assert aliases(registry(), NAME) == {"champion": first}
        assert promote(NAME, second, "always", examples).promoted
    assert aliases(registry(), NAME) == {"champion": second, "previous": first}
    assert rollback(NAME).version == first
    assert aliases(registry(), NAME) == {"champion": first, "previous": second}
    assert rollback(NAME).version == second


def test_promotion__a_model_that_has_seen_the_images_is_not_compared(
    models: dict[str, Exported], store: Path
) -> None:
    name = "unfair"
    promote(name, register_model(models["a"], name, ""), "if-better")
    judged = promote(name, register_model(models["other"], name, ""), "if-better")
    assert not judged.promoted
    assert "was trained on" in judged.reason
    assert "images of this selection part" in judged.reason
    assert "--policy always" in judged.reason


def test_promotion__unknown_names_list_the_choices(models: dict[str, Exported], store: Path) -> None:
    register_model(models["a"], "known", "")
    with pytest.raises(InputError, match=r"unknown registered model 'stranger'; choose one of: .*known"):
        promote("stranger", "1", "always")
    with pytest.raises(InputError, match=r"version of 'known': '7'; choose one of: 1"):
        promote("known", "7", "always")
    with pytest.raises(InputError, match="has no champion to roll back from"):
        rollback("known")


def test_promote__lists_and_rolls_back_on_the_command_line(models: dict[str, Exported], store: Path) -> None:
    name = "typed"
    for key in ("a", "b"):
        promote(name, register_model(models[key], name, ""), "always")

    def typed(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, SCRIPT, "--name", name, *flags], capture_output=True, text=True, check=False
        )

    done = typed("--rollback")
    assert done.returncode == 0, done.stderr
    assert f"models:/{name}@champion is version 1 now (before: version 2, now @previous)" in done.stdout
    wrong = typed("--rollback", "--list")
    assert wrong.returncode == 2
    assert "give one of them" in wrong.stderr


def test_card__says_what_a_person_must_know(models: dict[str, Exported], store: Path) -> None:
    text = write_card(models["a"], store / "a").read_text(encoding="utf-8")
    for wanted in ("tiny_cnn", "aeroplane", "optimistic", "--config", models["a"].info.data_fingerprint):
        assert wanted in text

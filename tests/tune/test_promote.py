import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.cli import run
from train.config import DataConfig, TrainConfig
from train.config_files import write_config
from train.examples import Examples
from train.publish import Exported, register_model, registry
from tune.promote import main
from tune.promotion import promote


@pytest.fixture(scope="module")
def shelf(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Exported], new_store: Callable[[Path], str]
) -> Iterator[Path]:
    """A registry with "signs": version 1, the champion, is poor; version 2 is good."""
    folder = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", new_store(folder))
        patch.chdir(folder)
        from train.tracking import client

        for noise in (3.0, 0.0):
            run_id = client().create_run("0").info.run_id
            register_model(tiny(folder / f"noise{noise:.0f}.onnx", noise, run_id=run_id), "signs", "")
        promote("signs", "1")
        yield folder


def said(*arguments: str) -> int:
    return run(main, ["--name", "signs", *arguments])


def test_main__lists_promotes_and_rolls_back(
    shelf: Path, signs: Examples, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said() == 0
    head, second, first = capsys.readouterr().out.splitlines()
    assert re.split(" {2,}", head) == [
        *("version", "alias", "selection mAP", "data", "SHA-256", "registered", "promoted", "model")
    ]
    assert re.split(" {2,}", second)[:3] == ["2", "1.0000 [1.0000, 1.0000]", signs.labels.fingerprint()]
    assert second.endswith("  noise0")
    assert first.startswith("1        @champion  0.")

    # The version's file says where the data are; a run's configuration may say it in its place.
    folder = signs.labels.paths[0].parent
    data = DataConfig(labels=folder / "labels.csv", selection=0.5, size=16, cache=folder / "cache")
    write_config(shelf / "config.json", dataclasses.replace(TrainConfig(), data=data))
    for where in (["--run", str(shelf)], []):
        assert said("--version", "2", *where) == 0
        out = capsys.readouterr().out
        assert out.startswith(
            "champion   models:/signs@champion is version 2 now (before: version 1, now @previous): better outside"
        )
        assert said("--rollback") == 0
        out = capsys.readouterr().out
        assert out.startswith(
            "champion   models:/signs@champion is version 1 now (before: version 2, now @prev"
        )
    assert registry().get_model_version("signs", "1").tags["promotion.reason"] == "rolled back from version 2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--list", "--rollback"], "--list, --rollback and --version are three things to do"),
        (["--policy", "always"], "--run and --policy belong to --version N"),
        (["--version", "9"], "unknown version of 'signs': '9'; choose one of: 1, 2"),
        (["--name", "sings"], "unknown registered model 'sings'; choose one of: signs"),
        (["--version", "2", "--run", "nowhere"], "no configuration file at nowhere"),
    ],
)
def test_main__errors_name_the_choices(
    arguments: list[str], message: str, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(*arguments) == 2
    assert message in capsys.readouterr().err

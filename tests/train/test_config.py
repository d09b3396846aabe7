import dataclasses
import json
from pathlib import Path

import pytest

from data.errors import InputError
from train.config import AugmentConfig, DataConfig, LossConfig, ScheduleConfig, TrainConfig
from train.config_files import flatten, override, read_config, to_dict, write_config
from train.options import parse_train
from train.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_write_config__reads_back_the_same(name: str, tmp_path: Path) -> None:
    config = dataclasses.replace(preset(name), out=tmp_path, data=DataConfig(root=tmp_path, size=96))
    write_config(tmp_path / "config.json", config)
    assert read_config(tmp_path / "config.json", TrainConfig()) == config


def test_parse_train__command_line_over_file_over_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("batch_size = 8\n[optimizer]\nlr = 0.5\nclip = 1\n")
    config = parse_train(["--preset", "smoke", "--config", str(file), "--optimizer.lr", "0.25"])
    assert config.optimizer.lr == 0.25
    assert config.optimizer.clip == 1.0
    assert config.batch_size == 8
    assert config.model.backbone == "tiny_cnn"
    assert config.out is not None
    assert config.out.parent == Path("runs/train")


def test_parse_train__prints_the_resolved_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse_train(["--preset", "smoke", "--seed", "5"])
    printed = capsys.readouterr().err
    assert json.loads(printed[printed.index("{") :]) == to_dict(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimiser": {}}, "unknown setting in x: 'optimiser'; choose one of: .*optimizer"),
        ({"optimizer": {"rate": 1}}, "unknown setting in x, optimizer: 'rate'; choose one of: .*lr"),
        ({"optimizer": 3}, "x: 'optimizer' must be a table of settings, got 3"),
        ({"batch_size": "8"}, "x: 'batch_size' must be a int, got '8'"),
        ({"batch_size": True}, "x: 'batch_size' must be a int, got True"),
        ({"precision": "half"}, "unknown x: 'precision' 'half'; choose one of: auto, bfloat16"),
        ({"schedule": {"epochs": 0}}, "schedule.epochs must be at least 1, but got 0"),
    ],
)
def test_override__names_what_is_wrong(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(TrainConfig(), values, "x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(selection=1.0), "data.selection must be between 0 and 1 exclusive, but got 1.0"),
        (lambda: DataConfig(size=8), "data.size must be between 16 and 1024 pixels, but got 8"),
        (lambda: DataConfig(root=Path("a"), labels=Path("b")), "two sources of labels"),
        (lambda: LossConfig(margin=1.0), r"loss.margin must be in \[0, 1\), but got 1.0"),
        (lambda: AugmentConfig(min_area=0), r"augment.min_area must be in \(0, 1\], but got 0"),
        (lambda: ScheduleConfig(warmup=1.0), r"schedule.warmup must be in \[0, 1\), but got 1.0"),
        (lambda: TrainConfig(ema=1.0), r"ema must be in \[0, 1\), but got 1.0"),
        (lambda: TrainConfig(resume=True, overwrite=True), "contradict each other"),
    ],
)
def test_config__names_rule_and_value(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_preset__unknown_lists_the_choices() -> None:
    with pytest.raises(InputError, match=r"unknown preset 'best2'; choose one of: .*baseline, .*smoke"):
        preset("best2")


def test_read_config__broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("batch_size = = 3")
    with pytest.raises(InputError, match=r"a\.toml is not valid TOML"):
        read_config(file, TrainConfig())
    with pytest.raises(InputError, match="no configuration file at"):
        read_config(tmp_path / "none.json", TrainConfig())


def test_flatten__gives_dotted_names() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}

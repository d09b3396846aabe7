import dataclasses
from pathlib import Path

import pytest

from data.errors import InputError
from train.config import DataConfig
from tune.options import parse_search
from tune.space import PRESETS, SearchOptions, Space, apply_point, check_space, quick


@pytest.mark.parametrize("name", PRESETS)
def test_preset__is_a_space_that_can_be_trained(name: str) -> None:
    check_space(PRESETS[name]())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: check_space(dataclasses.replace(quick(), space=Space(backbone=("resnet19",)))),
            r"unknown backbone in space\.backbone 'resnet19'; choose one of: .*resnet18",
        ),
        (
            lambda: check_space(dataclasses.replace(quick(), space=Space(loss=("hinge",)))),
            r"unknown loss in space\.loss 'hinge'; choose one of: apl, asl, bce",
        ),
        (lambda: Space(loss=()), r"space\.loss must name at least one choice"),
        (lambda: Space(loss=("bce", "bce")), r"space\.loss must not repeat a choice"),
        (
            lambda: Space(lr=(1e-2, 1e-3)),
            r"space\.lr must be LOW HIGH with 0 < LOW <= HIGH, but got \(0\.01, 0\.001\)",
        ),
        (lambda: SearchOptions(trials=0), r"search\.trials must be at least 1, but got 0"),
    ],
)
def test_space__names_rule_value_and_choices(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_apply_point__puts_the_point_into_the_run(tmp_path: Path) -> None:
    config = parse_search(["--preset", "quick", "--seed", "4", "--schedule.epochs", "3"])
    point = {"backbone": "mobilenet_v2=/w.pth", "loss": "asl", "lr": 2e-3, "backbone_lr_ratio": 0.1}
    trial = apply_point(config, point, tmp_path)
    assert (trial.model.backbone, trial.model.weights, trial.loss.name) == ("mobilenet_v2", "/w.pth", "asl")
    assert trial.optimizer.lr == 2e-3
    assert trial.optimizer.backbone_lr == pytest.approx(2e-4)
    assert (trial.seed, trial.schedule.epochs, trial.out) == (4, 3, tmp_path)


@pytest.mark.parametrize(
    ("entry", "weights"), [("resnet18", "imagenet"), ("tiny_cnn", "none"), ("resnet18=none", "none")]
)
def test_apply_point__default_weights(entry: str, weights: str, tmp_path: Path) -> None:
    point = {"backbone": entry, "loss": "bce", "lr": 1e-3, "backbone_lr_ratio": 1.0}
    assert apply_point(quick(), point, tmp_path).model.weights == weights


@pytest.mark.parametrize(
    ("backbone", "size", "message"),
    [
        ("vit_b_16", 64, "vit_b_16 takes images of 224 px, but data.size is 64"),
        ("resnet18=/nowhere.pth", 64, r"no weights file at /nowhere\.pth \(of resnet18\)"),
        ("tiny_cnn=imagenet", 64, "tiny_cnn has no pre-trained weights, but got imagenet"),
    ],
)
def test_check_space__refuses_what_could_not_be_trained(backbone: str, size: int, message: str) -> None:
    config = dataclasses.replace(quick(), space=Space(backbone=(backbone,)), data=DataConfig(size=size))
    with pytest.raises(InputError, match=message):
        check_space(config)


def test_parse_search__unknown_preset_lists_the_choices() -> None:
    with pytest.raises(InputError, match="unknown preset 'big'; choose one of: quick, voc"):
        parse_search(["--preset", "big"])

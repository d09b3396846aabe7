"""The space: what is refused before anything starts, and what a point makes of a run."""

import dataclasses
from pathlib import Path

import pytest

from data.errors import InputError
from train.config import DataConfig, LossConfig
from train.losses import LOSSES
from tune.options import parse_search
from tune.points import apply_point, architecture, check_space, data_configs, shown
from tune.presets import PRESETS, quick
from tune.space import AUGMENTS, LOSS_SPACE, Choice, Range, SearchOptions, Space


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
        (
            lambda: check_space(dataclasses.replace(quick(), space=Space(head=("big",)))),
            r"unknown head in space\.head 'big'; choose one of: csra, linear, ml_decoder",
        ),
        (
            lambda: check_space(dataclasses.replace(quick(), space=Space(augment=("wild",)))),
            r"unknown augment in space\.augment 'wild'; choose one of: mixup, none, standard, strong, weak",
        ),
        (lambda: Space(loss=()), r"space\.loss must name at least one choice"),
        (lambda: Space(loss=("bce", "bce")), r"space\.loss must not repeat a choice"),
        (
            lambda: Space(lr=(1e-2, 1e-3)),
            r"space\.lr must be LOW HIGH with 0 < LOW <= HIGH, but got \(0\.01, 0\.001\)",
        ),
        (lambda: Space(weight_decay=(1e-2,)), r"space\.weight_decay must be LOW HIGH"),
        (lambda: Space(ema=(1.0,)), r"space\.ema must be in \[0, 1\)"),
        (lambda: SearchOptions(trials=0), r"search\.trials must be at least 1, but got 0"),
        (lambda: SearchOptions(hours=-1), r"search\.hours must not be negative, but got -1"),
        (lambda: SearchOptions(gpus=1.5), r"search\.gpus must be a whole number above 1, or a fraction"),
        (lambda: SearchOptions(finalists=5), r"search\.keep must be at least search\.finalists.*3 and 5"),
        (lambda: SearchOptions(warm_start=("a",)), r"search\.warm_start is for search\.sampler tpe"),
    ],
)
def test_space__names_rule_value_and_choices(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_space__choices_may_be_written_with_commas() -> None:
    config = parse_search(["--space.backbone", "resnet50,convnext_tiny", "--space.loss", "bce,", "asl"])
    assert config.space.backbone == ("resnet50", "convnext_tiny")
    assert config.space.loss == ("bce", "asl")


def test_space__settings_of_a_loss_are_its_own_branch() -> None:
    space = Space(loss=("bce", "asl"), loss_settings=True)
    assert space.loss_axes("bce") == {}
    assert space.loss_axes("asl") == {"loss.gamma_neg": Range(1.0, 6.0), "loss.margin": Range(0.0, 0.2)}
    assert Space(loss=("asl",)).loss_axes("asl") == {}
    assert space.axes()["loss"] == Choice(("bce", "asl"))
    assert "weight_decay" not in space.axes()


def test_loss_space__names_losses_and_settings_that_exist_within_their_limits() -> None:
    for loss, axes in LOSS_SPACE.items():
        assert loss in LOSSES
        for name, axis in axes.items():
            for value in (axis.low, axis.high):
                dataclasses.replace(LossConfig(name=loss), **{name: value})


def test_cells__are_every_combination_of_the_choices() -> None:
    space = Space(backbone=("tiny_cnn", "tiny_resnet"), loss=("bce",), size=(32, 64))
    assert len(space.cells()) == 4
    assert {(cell["backbone"], cell["size"]) for cell in space.cells()} == {
        ("tiny_cnn", 32),
        ("tiny_cnn", 64),
        ("tiny_resnet", 32),
        ("tiny_resnet", 64),
    }


def test_apply_point__puts_the_point_into_the_run(tmp_path: Path) -> None:
    config = parse_search(["--preset", "quick", "--seed", "4", "--schedule.epochs", "3"])
    point = {"backbone": "mobilenet_v2=/w.pth", "loss": "asl", "lr": 2e-3, "backbone_lr_ratio": 0.1}
    trial = apply_point(config, point, tmp_path)
    assert (trial.model.backbone, trial.model.weights, trial.loss.name) == ("mobilenet_v2", "/w.pth", "asl")
    assert trial.optimizer.lr == 2e-3
    assert trial.optimizer.backbone_lr == pytest.approx(2e-4)
    assert (trial.seed, trial.schedule.epochs, trial.out) == (4, 3, tmp_path)
    assert shown(point)["backbone"] == "mobilenet_v2"


def test_apply_point__everything_that_may_vary(tmp_path: Path) -> None:
    point = {
        "backbone": "tiny_cnn",
        "head": "csra",
        "loss": "asl",
        "loss.gamma_neg": 2.5,
        "lr": 1e-3,
        "backbone_lr_ratio": 1.0,
        "weight_decay": 0.05,
        "augment": "strong",
        "size": 48,
        "ema": 0.9,
        "seed": 9,
        "finalist": "abc",
    }
    trial = apply_point(quick(), point, tmp_path)
    assert (trial.model.head, trial.loss.gamma_neg, trial.optimizer.weight_decay) == ("csra", 2.5, 0.05)
    assert (trial.augment, trial.data.size, trial.ema, trial.seed) == (AUGMENTS["strong"], 48, 0.9, 9)
    assert architecture(point) == "tiny_cnn csra 48"


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


def test_check_space__every_size_must_fit_every_backbone() -> None:
    space = Space(backbone=("tiny_cnn", "vit_b_16=none"), size=(224, 320))
    with pytest.raises(InputError, match=r"vit_b_16 takes images of 224 px, but data\.size is 320"):
        check_space(dataclasses.replace(quick(), space=space))
    assert [data.size for data in data_configs(dataclasses.replace(quick(), space=space))] == [224, 320]


def test_parse_search__unknown_preset_lists_the_choices() -> None:
    with pytest.raises(InputError, match="unknown preset 'big'; choose one of: full, quick, voc"):
        parse_search(["--preset", "big"])

"""Named starting points for a run. Each is a function, so that none shares state."""

from collections.abc import Callable

from data.errors import unknown
from train.config import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def smoke() -> TrainConfig:
    """Two epochs of a very small network at 32 px: does the whole chain run? Seconds on a CPU."""
    return TrainConfig(
        data=DataConfig(size=32),
        model=ModelConfig(backbone="tiny_cnn", weights="none", dropout=0.0),
        optimizer=OptimizerConfig(lr=4e-3, backbone_lr=4e-3),
        schedule=ScheduleConfig(epochs=2),
        batch_size=64,
        ema=0.9,
    )


def demo() -> TrainConfig:
    """A small network from scratch at 64 px on the synthetic devkit: half a minute on two cores."""
    return TrainConfig(
        data=DataConfig(size=64),
        model=ModelConfig(backbone="tiny_cnn", weights="none"),
        optimizer=OptimizerConfig(lr=8e-3, backbone_lr=8e-3),
        schedule=ScheduleConfig(epochs=16, warmup=0.2),
        # Weak crops: at min_area 0.7, 18 epochs of tiny_cnn at lr 4e-3 end at 0.79 instead of 0.81 selection mAP.
        augment=AugmentConfig(min_area=0.85, aspect=1.1),
        batch_size=64,
        ema=0.98,
    )


def baseline() -> TrainConfig:
    """A plain fine-tune with BCE at 224 px: six epochs of an ImageNet MobileNetV2."""
    return TrainConfig()


def best() -> TrainConfig:
    """The best fine-tune of an ImageNet MobileNetV2 found for photographs in half an hour of one CPU core."""
    return TrainConfig(
        # The settings were chosen with 15 and 30 % held out; so little is enough for the calibration alone.
        data=DataConfig(size=384, train_size=288, selection=0.05),
        model=ModelConfig(head="csra", csra_lambda=0.2, frozen_blocks=3),
        loss=LossConfig(name="asl"),
        schedule=ScheduleConfig(epochs=16, keep="last"),
        flip_test=True,
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "smoke": smoke,
    "demo": demo,
    "baseline": baseline,
    "best": best,
}
DEFAULT_PRESET = "demo"


def preset(name: str) -> TrainConfig:
    """The configuration of that name; an unknown name lists the choices."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]()

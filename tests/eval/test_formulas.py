import dataclasses
from pathlib import Path

import pytest
import typst

from eval.formulas import FORMULAS, REDUCTION
from train.config import LossConfig, TrainConfig
from train.config_files import flatten, to_dict
from train.losses import LOSSES


def test_formulas__every_loss_has_one() -> None:
    assert set(FORMULAS) == set(LOSSES)


def test_formulas__settings_are_settings_of_the_loss() -> None:
    config = flatten(to_dict(TrainConfig()))
    shown = {key.removeprefix("loss.") for formula in FORMULAS.values() for _, key in formula.settings}
    # Label smoothing changes the target of any loss, not its formula.
    assert shown == {field.name for field in dataclasses.fields(LossConfig)} - {"name", "label_smoothing"}
    assert {f"loss.{key}" for key in shown} <= set(config)


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas__typst_sets_them(name: str, tmp_path: Path) -> None:
    formula = FORMULAS[name]
    lines = [formula.math, REDUCTION, *(symbol for symbol, _ in formula.settings)]
    (tmp_path / "a.typ").write_text("\n".join(f"$ {line} $" for line in lines))
    assert typst.compile(tmp_path / "a.typ").startswith(b"%PDF")

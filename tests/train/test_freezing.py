import dataclasses

import pytest
import torch

from data.errors import InputError
from train import checkpoint
from train.backbones import make_backbone
from train.config import ModelConfig, ScheduleConfig, TrainConfig
from train.freezing import freeze
from train.heads import make_model
from train.loop import fit


def test_freeze__stem_and_first_blocks_with_their_norms() -> None:
    backbone = make_backbone("mobilenet_v2", "none", 64)
    norms = freeze(backbone, 3)
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in backbone.trunk[:4].named_parameters(prefix="trunk")}
    inside = {id(module) for module in backbone.trunk[:4].modules()}
    assert len(norms) == 1 + 2 + 3 + 3  # of the stem, of a block without expansion, of two with it
    assert all(id(norm) in inside for norm in norms)
    assert freeze(make_backbone("mobilenet_v2", "none", 64), 0) == []
    with pytest.raises(InputError, match="frozen_blocks must be at most 17 here, but got 18"):
        freeze(backbone, 18)


def test_fit__frozen_blocks_end_as_they_began(smoke: TrainConfig) -> None:
    assert smoke.out is not None
    model = ModelConfig(backbone="tiny_resnet", weights="none", frozen_blocks=2)
    fit(dataclasses.replace(smoke, model=model, schedule=ScheduleConfig(epochs=1)))
    trained = checkpoint.load(smoke.out / checkpoint.BEST)["model"]
    torch.manual_seed(smoke.seed)
    start = make_model(model, 20, smoke.data.size)
    same = {key: torch.equal(value, trained[key]) for key, value in start.state_dict().items()}
    frozen = {id(p) for p in start.backbone.blocks[1].parameters()}
    names = {name for name, p in start.named_parameters() if id(p) in frozen}
    assert all(same[name] for name in names)
    assert same["backbone.trunk.0.1.running_mean"]
    assert not same["head.linear.weight"]
    assert not same["backbone.trunk.7.norm.weight"]

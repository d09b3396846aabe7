import math

import pytest
import torch

from data.errors import InputError
from train.backbones import BACKBONES, make_backbone
from train.config import ModelConfig, OptimizerConfig
from train.heads import HEADS, make_model
from train.optimization import depths, parameter_groups

SMALL = {"ml_decoder_dim": 16, "ml_decoder_feed_forward": 16, "ml_decoder_heads": 2}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_parameter_groups__head_has_its_own_rate_for_weight_and_bias(backbone: str, head: str) -> None:
    with torch.device("meta"):
        size = 224 if backbone.startswith("vit") else 64
        config = ModelConfig(backbone, "none", head, drop_path=0.1, ml_decoder_learned=True, **SMALL)
        model = make_model(config, 20, size)
    settings = OptimizerConfig(lr=1e-2, backbone_lr=1e-4, weight_decay=0.1, layer_decay=0.9)
    peaks, groups = parameter_groups(model, settings)
    of = {id(p): group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(of) == len(list(model.parameters()))
    names = [name for name, _ in model.head.named_parameters()]
    assert any("bias" in name for name in names)
    assert any("weight" in name for name in names)
    for parameter in model.head.parameters():
        assert of[id(parameter)]["lr"] == 1e-2
    for parameter in model.backbone.parameters():
        assert of[id(parameter)]["lr"] <= 1e-4
    assert peaks == [group["lr"] for group in groups]
    # The loop reports the last group's rate as the head's.
    assert peaks[-1] == 1e-2


def test_parameter_groups__without_layer_decay_there_are_four() -> None:
    model = make_model(ModelConfig(backbone="tiny_resnet", weights="none"), 20, 64)
    peaks, groups = parameter_groups(model, OptimizerConfig(lr=1e-2, backbone_lr=1e-4, weight_decay=0.1))
    assert peaks == [1e-4, 1e-4, 1e-2, 1e-2]
    assert [group["weight_decay"] for group in groups] == [0, 0.1, 0, 0.1]
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


@pytest.mark.parametrize(
    ("backbone", "kept"),
    [
        ("vit_b_16", {"class_token", "pos_embedding"}),
        ("swin_v2_t", {"logit_scale", "cpb_mlp.0.weight"}),
        ("convnext_tiny", {"layer_scale"}),
    ],
)
def test_parameter_groups__embeddings_and_scales_do_not_decay(backbone: str, kept: set[str]) -> None:
    with torch.device("meta"):
        model = make_model(ModelConfig(backbone, "none"), 20, 224)
    _, groups = parameter_groups(model, OptimizerConfig(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    seen = set()
    for name, parameter in model.named_parameters():
        end = next((end for end in kept if name.endswith(end)), "")
        seen.add(end)
        if end:
            assert decay[id(parameter)] == 0
        elif name.endswith(("qkv.weight", "in_proj_weight", "block.3.weight", "conv_proj.weight")):
            assert decay[id(parameter)] == 0.1
    assert seen == kept | {""}


@pytest.mark.parametrize(
    ("backbone", "wanted"),
    [
        # 12 blocks: 0 the stem, 1 to 12 the blocks, 13 the final norm.
        (
            "vit_b_16",
            {
                "trunk.class_token": 0,
                "trunk.conv_proj.weight": 0,
                "trunk.encoder.pos_embedding": 0,
                "trunk.encoder.layers.encoder_layer_0.ln_1.weight": 1,
                "trunk.encoder.layers.encoder_layer_11.mlp.3.bias": 12,
                "trunk.encoder.ln.weight": 13,
            },
        ),
        # 2 + 2 + 6 + 2 blocks; a merging of patches belongs to the block after it.
        (
            "swin_v2_t",
            {
                "trunk.0.0.0.weight": 0,
                "trunk.0.0.2.bias": 0,
                "trunk.0.1.0.norm1.weight": 1,
                "trunk.0.1.1.attn.logit_scale": 2,
                "trunk.0.2.reduction.weight": 3,
                "trunk.0.3.0.mlp.0.weight": 3,
                "trunk.0.7.1.mlp.0.weight": 12,
                "trunk.1.weight": 13,
            },
        ),
        # 3 + 3 + 9 + 3 blocks; the classifier's norm is last.
        (
            "convnext_tiny",
            {
                "trunk.0.0.weight": 0,
                "trunk.1.0.layer_scale": 1,
                "trunk.2.1.weight": 4,
                "trunk.7.2.block.5.bias": 18,
                "pool.1.weight": 19,
            },
        ),
        (
            "resnet18",
            {
                "trunk.0.weight": 0,
                "trunk.1.bias": 0,
                "trunk.4.0.conv1.weight": 1,
                "trunk.5.0.downsample.0.weight": 3,
                "trunk.7.1.bn2.weight": 8,
            },
        ),
        ("resnet50", {"trunk.1.weight": 0, "trunk.7.2.conv3.weight": 16}),
        (
            "mobilenet_v2",
            {
                "trunk.0.0.weight": 0,
                "trunk.1.conv.0.0.weight": 1,
                "trunk.17.conv.3.bias": 17,
                "trunk.18.0.weight": 18,
            },
        ),
        (
            "mobilenet_v3_large",
            {
                "trunk.0.0.weight": 0,
                "trunk.15.block.0.0.weight": 15,
                "trunk.16.1.bias": 16,
                "pool.2.bias": 16,
            },
        ),
        ("tiny_resnet", {"trunk.0.0.weight": 0, "trunk.1.0.weight": 1, "trunk.7.norm.bias": 5}),
    ],
)
def test_depths__count_the_blocks(backbone: str, wanted: dict[str, int]) -> None:
    with torch.device("meta"):
        net = make_backbone(backbone, "none", 224)
    found = depths(net)
    assert {name: found[name] for name in wanted} == wanted
    assert found.keys() == {name for name, _ in net.named_parameters()}
    assert set(found.values()) - {len(net.blocks) + 1} == set(range(len(net.blocks) + 1))


def test_parameter_groups__layer_decay_is_a_power_of_the_distance_to_the_head() -> None:
    with torch.device("meta"):
        model = make_model(ModelConfig("vit_b_16", "none"), 20, 224)
    _, groups = parameter_groups(model, OptimizerConfig(lr=1e-2, backbone_lr=1e-3, layer_decay=0.75))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    vit = model.backbone.trunk
    assert math.isclose(rate[id(vit.encoder.ln.weight)], 1e-3)
    assert math.isclose(rate[id(vit.encoder.layers[11].ln_1.weight)], 1e-3 * 0.75)
    assert math.isclose(rate[id(vit.encoder.layers[0].ln_1.weight)], 1e-3 * 0.75**12)
    assert math.isclose(rate[id(vit.conv_proj.weight)], 1e-3 * 0.75**13)
    assert rate[id(model.head.linear.bias)] == 1e-2


def test_optimizer_config__layer_decay_must_lie_between_zero_and_one() -> None:
    for value in (0.0, 1.1):
        with pytest.raises(InputError, match=rf"optimizer.layer_decay must be in \(0, 1\], but got {value}"):
            OptimizerConfig(layer_decay=value)

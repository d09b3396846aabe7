import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.errors import InputError
from data.model_file import ModelInfo
from train.augment import to_float
from train.backbones import Features
from train.config import ModelConfig, TrainConfig
from train.config_files import read_config, write_config
from train.csra import CsraHead
from train.heads import HEADS, Classifier, make_model
from train.ml_decoder import MlDecoderHead
from train.noise import noise_of
from train.onnx_graph import Parity, export_onnx

SMALL = {"ml_decoder_dim": 64, "ml_decoder_feed_forward": 96, "ml_decoder_queries": 2}


def images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def varied(model: Classifier, size: int) -> Classifier:
    """The model with weights of the head, and batch-norm statistics, that make its outputs vary over images."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        noise_of(model).start(0, 0, 0, 32, 32)
        model.train()(to_float(torch.from_numpy(images(32, size))))
    return model.eval()


def exported(model: Classifier, size: int, path: Path) -> Parity:
    """What the gate saw; it refuses outputs that do not vary."""
    classes = tuple(f"c{i}" for i in range(model(torch.rand(1, 3, size, size)).shape[1]))
    count = len(classes)
    info = ModelInfo("m", classes, size, "p", (1.0,) * count, (0.0,) * count, (0.5,) * count)
    return export_onnx(model, info, images(40, size), path)


@pytest.mark.parametrize("head", HEADS)
def test_head__is_exported_with_parity_on_tiny_cnn(head: str, tmp_path: Path) -> None:
    model = varied(make_model(ModelConfig("tiny_cnn", "none", head, **SMALL), 3, 32), 32)
    parity = exported(model, 32, tmp_path / "m.onnx")
    assert parity.difference <= 1e-4
    assert parity.spread > 0.005


class Beside(nn.Module):
    """Heads on one backbone, their logits side by side: the backbone is exported once."""

    def __init__(self, heads: list[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Features) -> torch.Tensor:
        return torch.cat([head(features) for head in self.heads], 1)


def test_head__all_are_exported_with_parity_on_mobilenet_v2(tmp_path: Path) -> None:
    config = ModelConfig("mobilenet_v2", "none", drop_path=0.1, csra_temperature=(1, 3, math.inf), **SMALL)
    model = make_model(config, 3, 64)
    model.head = Beside([HEADS[name](model.backbone, 3, config) for name in HEADS])
    parity = exported(varied(model, 64), 64, tmp_path / "m.onnx")
    assert parity.difference <= 1e-4
    assert parity.spread > 0.005


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "backbone", ["resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "convnext_tiny", "swin_v2_t"]
)
def test_make_model__every_parameter_gets_a_gradient(backbone: str, head: str) -> None:
    """A parameter that the loss does not reach would stop distributed training."""
    torch.manual_seed(0)
    model = make_model(ModelConfig(backbone, "none", head, drop_path=0.1, **SMALL), 5, 64)
    noise_of(model).start(0, 0, 0, 4, 4)
    logit = model.train()(255 * torch.rand(4, 3, 64, 64))
    assert logit.shape == (4, 5)
    logit.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_make_model__unknown_head_lists_the_choices() -> None:
    with pytest.raises(InputError, match="unknown head 'mlp'; choose one of: csra, linear, ml_decoder"):
        make_model(ModelConfig("tiny_cnn", "none", "mlp"), 3, 32)


def test_csra__is_the_papers_formula() -> None:
    """Equations 1 to 3: attention over the places, a feature a class, one classifier on g + lambda a."""
    torch.manual_seed(0)
    lam, temperature, x = 0.3, 2.0, torch.randn(2, 6, 3, 4)
    head = CsraHead(6, 5, lam, (temperature,), 0.0)
    nn.init.normal_(head.score.weight)
    weight, places = head.score.weight[:, :, 0, 0], x.flatten(2)
    share = torch.einsum("cd,ndp->ncp", temperature * weight, places).softmax(-1)
    feature = places.mean(-1)[:, None] + lam * torch.einsum("ncp,ndp->ncd", share, places)
    got = head(Features(x, x.mean((2, 3))))
    torch.testing.assert_close(got, torch.einsum("cd,ncd->nc", weight, feature))


def test_csra__high_temperature_approaches_the_maximum_and_heads_add_up() -> None:
    torch.manual_seed(0)
    features = Features(torch.randn(2, 6, 3, 4), torch.empty(0))
    hot, largest = CsraHead(6, 5, 0.5, (1e4,), 0.0), CsraHead(6, 5, 0.5, (math.inf,), 0.0)
    nn.init.normal_(hot.score.weight)
    largest.load_state_dict(hot.state_dict())
    torch.testing.assert_close(hot(features), largest(features))
    two = CsraHead(6, 5, 0.5, (1e4, math.inf), 0.0)
    two.load_state_dict({k: torch.cat([v, v]) for k, v in hot.state_dict().items()})
    torch.testing.assert_close(two(features), 2 * largest(features))


def test_csra__lambda_zero_is_a_linear_layer_on_the_mean() -> None:
    torch.manual_seed(0)
    x, head = torch.randn(2, 6, 3, 4), CsraHead(6, 5, 0.0, (1.0,), 0.0)
    nn.init.normal_(head.score.bias)
    wanted = nn.functional.linear(x.mean((2, 3)), head.score.weight[:, :, 0, 0], head.score.bias)
    torch.testing.assert_close(head(Features(x, torch.empty(0))), wanted)


def test_ml_decoder__groups_answer_for_their_own_classes() -> None:
    """Seven classes over three queries: groups of three, of which the last gives one."""
    torch.manual_seed(0)
    head = MlDecoderHead(6, 7, 16, 3, 4, 32, dropout=0.0)
    features = Features(torch.randn(2, 6, 3, 4), torch.empty(0))
    assert head.group_weight.shape == (3, 16, 3)
    before = head(features)
    assert before.shape == (2, 7)
    with torch.no_grad():
        head.queries[1] += 1
    changed = (head(features) != before).any(0)
    assert changed.tolist() == [False] * 3 + [True] * 3 + [False]


def test_ml_decoder__does_not_care_where_things_lie_and_counts_queries_by_class() -> None:
    torch.manual_seed(0)
    head = MlDecoderHead(6, 4, 16, 100, 4, 32, dropout=0.0)
    x = torch.randn(2, 6, 3, 4)
    assert head.queries.shape == (4, 16)
    turned = head(Features(x.flip(3), torch.empty(0)))
    torch.testing.assert_close(turned, head(Features(x, torch.empty(0))))
    assert float(turned.detach().std(0).min()) > 1e-3


def test_ml_decoder__queries_are_fixed_unless_learned() -> None:
    names = [
        {name for name, _ in MlDecoderHead(6, 4, 16, heads=4, learned=learned).named_parameters()}
        for learned in (False, True)
    ]
    assert names[1] - names[0] == {"queries"}
    assert "queries" in MlDecoderHead(6, 4, 16, heads=4).state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_path": 1.0}, r"model.drop_path must be in \[0, 1\), but got 1.0"),
        ({"csra_lambda": -1.0}, "model.csra_lambda must not be negative"),
        ({"csra_temperature": ()}, "model.csra_temperature must name at least one positive temperature"),
        ({"csra_temperature": (1.0, 0.0)}, "model.csra_temperature must name at least one positive"),
        ({"ml_decoder_queries": 0}, "model.ml_decoder_queries must be at least 1, but got 0"),
        (
            {"ml_decoder_dim": 100},
            r"model.ml_decoder_dim must be a multiple of ml_decoder_heads \(8\), but got 100",
        ),
    ],
)
def test_model_config__bad_settings_name_the_rule(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelConfig(**changes)  # type: ignore[arg-type]


def test_model_config__an_infinite_temperature_survives_the_file(tmp_path: Path) -> None:
    config = TrainConfig(model=ModelConfig(csra_temperature=(1.0, math.inf)))
    write_config(tmp_path / "c.json", config)
    assert "Infinity" not in (tmp_path / "c.json").read_text()
    assert read_config(tmp_path / "c.json", TrainConfig()) == config

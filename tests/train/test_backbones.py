import copy
from pathlib import Path

import pytest
import torch
import torchvision

from data.errors import InputError
from train.backbones import BACKBONES, make_backbone
from train.config import ModelConfig, OptimizerConfig
from train.heads import make_model
from train.optimization import parameter_groups

TORCHVISION = [name for name, spec in BACKBONES.items() if spec.torchvision]


@pytest.mark.parametrize("name", TORCHVISION)
def test_backbone__pooled_vector_is_what_torchvisions_classifier_sees(name: str) -> None:
    """torchvision's own last layer on our pooled vector gives torchvision's own logits."""
    torch.manual_seed(0)
    spec = BACKBONES[name]
    full = torchvision.models.get_model(spec.torchvision, weights=None).eval()
    size = spec.sizes[0] if spec.sizes else 64
    x = torch.randn(1, 3, size, size)
    last = [module for module in full.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        wanted = full(x)
        backbone = spec.build(copy.deepcopy(full)).eval()
        features = backbone(x)
        got = last(features.pooled)
    assert features.pooled.shape == (1, backbone.dim)
    assert features.map.ndim == 4
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_cnn", "tiny_resnet"])
def test_tiny__gives_features_and_takes_no_weights(name: str) -> None:
    backbone = make_backbone(name, "none", 64)
    assert backbone(torch.randn(2, 3, 64, 64)).pooled.shape == (2, backbone.dim)
    with pytest.raises(InputError, match=f"backbone {name} has no pre-trained weights"):
        make_backbone(name, "imagenet", 64)


def test_make_backbone__size_that_the_backbone_cannot_take() -> None:
    with pytest.raises(InputError, match=r"vit_b_16 takes images of 224 px, but data.size is 64"):
        make_backbone("vit_b_16", "none", 64)


def test_make_backbone__loads_a_state_dict(tmp_path: Path) -> None:
    torch.manual_seed(1)
    full = torchvision.models.mobilenet_v2()
    torch.save(full.state_dict(), tmp_path / "w.pth")
    loaded = make_backbone("mobilenet_v2", str(tmp_path / "w.pth"), 64)
    assert torch.equal(loaded.trunk[0][0].weight, full.features[0][0].weight)


def test_make_backbone__wrong_weights_files_are_named(tmp_path: Path) -> None:
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "m.pth")
    (tmp_path / "text.pth").write_text("not a weights file")
    torch.save([1, 2], tmp_path / "list.pth")
    for file, message in (
        ("m.pth", r"does not fit torchvision's resnet18: it lacks \d+ tensors, first 'bn1.bias'"),
        ("text.pth", "is not a PyTorch weights file"),
        ("list.pth", "must hold a state dict"),
        ("none.pth", "no weights file at"),
    ):
        with pytest.raises(InputError, match=message):
            make_backbone("resnet18", str(tmp_path / file), 64)


def test_imagenet__without_a_network_says_what_to_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(
        InputError, match=r"Download https://\S+resnet18\S+ elsewhere and put it at \S+checkpoints"
    ):
        make_backbone("resnet18", "imagenet", 64)


def test_parameter_groups__head_has_its_own_rate_for_weight_and_bias() -> None:
    model = make_model(ModelConfig(backbone="mobilenet_v2", weights="none"), 20, 64)
    peaks, groups = parameter_groups(model, OptimizerConfig(lr=1e-2, backbone_lr=1e-4, weight_decay=0.1))
    of = {id(p): group for group in groups for p in group["params"]}
    assert len(of) == len(list(model.parameters()))
    for parameter in model.head.parameters():
        assert of[id(parameter)]["lr"] == 1e-2
    for parameter in model.backbone.parameters():
        assert of[id(parameter)]["lr"] == 1e-4
    for parameter in model.parameters():
        assert of[id(parameter)]["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    assert peaks == [group["lr"] for group in groups]

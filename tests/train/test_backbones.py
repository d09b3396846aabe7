import copy
from pathlib import Path

import pytest
import torch
import torchvision

from data.errors import InputError
from train.backbones import BACKBONES, Backbone, make_backbone
from train.drop_path import set_drop_path
from train.noise import DropPath, noise_of

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


def with_blocks(name: str, drop_path: float, checkpointing: bool = False) -> Backbone:
    torch.manual_seed(0)
    backbone = make_backbone(name, "none", BACKBONES[name].sizes[0] if BACKBONES[name].sizes else 64)
    set_drop_path(backbone.blocks, drop_path)
    backbone.checkpointing = checkpointing
    return backbone


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("tiny_cnn", 0),
        ("tiny_resnet", 2),
        ("resnet18", 8),
        ("resnet50", 16),
        ("mobilenet_v2", 10),
        ("mobilenet_v3_large", 10),
        ("efficientnet_v2_s", 40),
        ("convnext_tiny", 18),
        ("swin_v2_t", 24),
        ("vit_b_16", 24),
    ],
)
def test_set_drop_path__every_residual_branch_of_every_backbone(name: str, paths: int) -> None:
    with torch.device("meta"):
        backbone = with_blocks(name, 0.3)
    found = [module for module in backbone.modules() if isinstance(module, DropPath)]
    assert len(found) == paths
    rates = [path.p for path in found]
    assert rates == sorted(rates)
    if paths and name != "mobilenet_v2":  # its last block has no shortcut
        assert rates[-1] == pytest.approx(0.3)
    for module in backbone.modules():  # nothing else draws from torch's stream
        assert not isinstance(module, torchvision.ops.StochasticDepth)
        assert not (isinstance(module, torch.nn.Dropout) and module.p > 0)


@pytest.mark.parametrize("name", BACKBONES)
def test_set_drop_path__changes_no_key_and_nothing_in_evaluation(name: str) -> None:
    with torch.device("meta"):
        size = BACKBONES[name].sizes[0] if BACKBONES[name].sizes else 64
        keys = make_backbone(name, "none", size).state_dict().keys()
        assert with_blocks(name, 0.3).state_dict().keys() == keys
    if name in ("resnet101", "resnet34", "vit_b_16"):  # as their siblings, but slow
        return
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.manual_seed(0)
        wanted = make_backbone(name, "none", size).eval()(x)
        got = with_blocks(name, 0.3).eval()(x)
    assert torch.equal(got.map, wanted.map)


@pytest.mark.parametrize(
    "name", ["tiny_resnet", "resnet18", "resnet50", "mobilenet_v2", "convnext_tiny", "swin_v2_t"]
)
def test_drop_path__a_dropped_image_passes_the_shortcuts_alone(name: str) -> None:
    backbone = with_blocks(name, 0.6).train()
    noise_of(backbone).start(0, 1, 0, 8, 8)
    last = [b for b in backbone.blocks if any(isinstance(m, DropPath) for m in b.modules())][-1]
    paths = [path(torch.ones(8)) for path in last.modules() if isinstance(path, DropPath)]
    dropped = torch.stack(paths).sum(0) == 0
    assert 0 < int(dropped.sum()) < 8
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    last.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    backbone(torch.randn(8, 3, 64, 64))
    ((before, after),) = seen
    unchanged = (after == (before.relu() if "res" in name else before)).flatten(1).all(1)
    assert torch.equal(unchanged, dropped)


@pytest.mark.parametrize("name", ["tiny_resnet", "mobilenet_v2", "resnet18", "swin_v2_t"])
def test_checkpointing__same_gradients_and_statistics(name: str) -> None:
    size = BACKBONES[name].sizes[0] if BACKBONES[name].sizes else 32
    x, results = torch.randn(2, 3, size, size), []
    plain = with_blocks(name, 0.4)
    for checkpointing in (False, True):
        model = torch.nn.Sequential(copy.deepcopy(plain)).train()
        model[0].checkpointing = checkpointing
        noise_of(model).start(0, 7, 0, 2, 2)
        state = torch.get_rng_state()
        features = model(x)
        (features.map.square().sum() + features.pooled.sum()).backward()
        assert torch.equal(torch.get_rng_state(), state)  # nothing drew from torch's stream
        results.append(([p.grad for p in model.parameters()], dict(model.named_buffers()), features))
    (gradients, buffers, features), (again, buffers_again, features_again) = results
    assert torch.equal(features.map, features_again.map)
    for one, other in zip(gradients, again, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    for key, value in buffers.items():
        assert torch.equal(value, buffers_again[key]), key
    if name == "resnet18":
        assert buffers_again["0.trunk.4.0.bn1.num_batches_tracked"] == 1


def test_checkpointing__compiled_it_is_the_same() -> None:
    plain, x = with_blocks("tiny_resnet", 0.4), torch.randn(2, 3, 32, 32)
    results = []
    for compiled in (False, True):
        model = copy.deepcopy(plain).train()
        model.checkpointing = compiled
        noise_of(model).start(0, 7, 0, 2, 2)
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        run(x).map.square().sum().backward()
        results.append([p.grad for p in model.parameters()] + list(model.buffers()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one)


def test_checkpointing__keeps_less() -> None:
    """The bytes that the graph holds after the forward pass, which is what checkpointing is for."""
    held = []
    for checkpointing in (False, True):
        model, kept = with_blocks("resnet18", 0.0, checkpointing).train(), []

        def pack(tensor: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 3, 64, 64))
        held.append(sum(tensor.numel() for tensor in kept if not isinstance(tensor, torch.nn.Parameter)))
    assert held[1] < 0.5 * held[0]


@pytest.mark.parametrize("name", BACKBONES)
def test_pool_map__gives_the_maps_mean_and_says_its_channels(name: str) -> None:
    backbone = with_blocks(name, 0.0).eval()
    if name == "vit_b_16":
        backbone.pool_map()
        assert backbone.map_dim == backbone.dim == 768
        return
    before = list(backbone.trunk.parameters())
    backbone.pool_map()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, 64, 64))
    assert features.map.shape[1] == backbone.map_dim == features.pooled.shape[1] == backbone.dim
    torch.testing.assert_close(features.pooled, features.map.mean((2, 3)))
    assert not list(backbone.pool.parameters())
    # ConvNeXt's norm goes over to the map: without it a channel's scale is whatever it is.
    assert len(list(backbone.trunk.parameters())) - len(before) == (2 if name == "convnext_tiny" else 0)

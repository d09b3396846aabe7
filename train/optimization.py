"""Which parameter learns how fast."""

from typing import Any

from torch import nn

from train.backbones import Backbone
from train.config import OptimizerConfig
from train.heads import Classifier

# Vectors and tables in the shape of matrices: ViT's class token and positions, Swin's position bias and the
# scale of its attention (both without decay in its own recipe), ConvNeXt's layer scale, ML-Decoder's queries.
_NOT_DECAYED = {"class_token", "pos_embedding", "cpb_mlp", "logit_scale", "layer_scale", "queries"}


def parameter_groups(model: Classifier, config: OptimizerConfig) -> tuple[list[float], list[dict[str, Any]]]:
    """AdamW's groups: of the backbone (with layer-wise decay: of each depth) and of the head, each with and
    without weight decay.

    A parameter of depth k (`depths`) learns at backbone_lr * layer_decay^(deepest - k). All the head's
    parameters learn at `lr`. Weight decay leaves out biases and norms (one dimension) and what `_NOT_DECAYED`
    names; what needs no gradient is in no group. Returns the peak learning rate of each group, and the
    groups; the head's come last.
    """
    depth = depths(model.backbone)
    deepest = len(model.backbone.blocks) + 1
    # With a factor of 1 all depths are one pair of groups, so that the optimizer's kernels run over long lists.
    rates = {k: config.backbone_lr * config.layer_decay ** (deepest - k) for k in range(deepest + 1)}
    chosen: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for part, of_head in ((model.backbone, False), (model.head, True)):
        for name, parameter in part.named_parameters():
            if not parameter.requires_grad:
                continue
            lr = config.lr if of_head else rates[depth[name]]
            decay = config.weight_decay if _is_decayed(name, parameter) else 0.0
            chosen.setdefault((of_head, lr, decay), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": chosen[key], "lr": key[1], "weight_decay": key[2]} for key in sorted(chosen)
    ]
    return [group["lr"] for group in groups], groups


def depths(backbone: Backbone) -> dict[str, int]:
    """The depth of each of a backbone's parameters, by name: 0 for the stem, k for its k-th block (from 1).

    What lies between two blocks (downsampling, patch merging) belongs to the block after it; what follows the
    last one (final norm, last convolution, the classifier's own layers) is one deeper than that. So counted in
    BEiT (Bao et al. 2022, arXiv:2106.08254) and ConvNeXt (Liu et al. 2022, arXiv:2201.03545), there with two
    or three blocks a depth.
    """
    block_of = {id(p): k for k, block in enumerate(backbone.blocks, 1) for p in block.parameters()}
    found: dict[str, int] = {}
    following = len(backbone.blocks) + 1
    for name, parameter in reversed(list(backbone.named_parameters())):
        following = block_of.get(id(parameter), following)
        # Before the first block lies the stem.
        is_stem = following == 1 and id(parameter) not in block_of
        found[name] = 0 if is_stem else following
    return found


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not _NOT_DECAYED.intersection(name.split("."))

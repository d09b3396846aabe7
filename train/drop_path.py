"""Drop path on the residual blocks of any backbone, in place of torchvision's StochasticDepth."""

from collections.abc import Sequence

from torch import nn

from train.backbones import Residual
from train.noise import DropPath


def set_drop_path(blocks: Sequence[nn.Module], rate: float) -> None:
    """Put `DropPath` before the addition of every residual block; no key of the state dict changes.

    Its probability grows linearly over the depth, from 0 at the first block to `rate` at the last (Huang et
    al. 2016, arXiv:1603.09382). torchvision's own rates (Swin 0.2, EfficientNetV2 0.2, ConvNeXt 0.1) are
    replaced: `rate` 0 trains without.

    Args:
        blocks: of a backbone in their order, `Backbone.blocks`; those without a shortcut stay as they are.
        rate: probability at the last block, in [0, 1).
    """
    for i, block in enumerate(blocks):
        p = rate * i / max(len(blocks) - 1, 1)
        if isinstance(block, Residual):
            block.drop_path = DropPath(p)
        elif not isinstance(block, nn.Sequential):
            _set_torchvision(block, p)


def _set_torchvision(block: nn.Module, p: float) -> None:
    from torchvision.models.convnext import CNBlock
    from torchvision.models.efficientnet import FusedMBConv, MBConv
    from torchvision.models.mobilenetv2 import InvertedResidual
    from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3
    from torchvision.models.resnet import BasicBlock, Bottleneck
    from torchvision.models.swin_transformer import SwinTransformerBlockV2
    from torchvision.models.vision_transformer import EncoderBlock

    from train.residual_blocks import DroppedBasicBlock, DroppedBottleneck, DroppedSwinBlock

    if isinstance(block, (CNBlock, FusedMBConv, MBConv)):
        block.stochastic_depth = DropPath(p)
    elif isinstance(block, SwinTransformerBlockV2):
        block.__class__ = DroppedSwinBlock
        block.stochastic_depth, block.drop_path_mlp = DropPath(p), DropPath(p)
    elif isinstance(block, EncoderBlock):
        # Two branches, each of which ends in a torchvision dropout that our backbone leaves at 0.
        block.dropout, block.mlp[-1] = DropPath(p), DropPath(p)
    elif isinstance(block, InvertedResidual) and block.use_res_connect:
        block.conv.append(DropPath(p))
    elif isinstance(block, InvertedResidualV3) and block.use_res_connect:
        block.block.append(DropPath(p))
    elif isinstance(block, (BasicBlock, Bottleneck)):
        block.__class__ = DroppedBasicBlock if isinstance(block, BasicBlock) else DroppedBottleneck
        block.drop_path = DropPath(p)

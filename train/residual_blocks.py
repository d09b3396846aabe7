"""torchvision's residual blocks with drop path where they have no place for it; their parameters' names stay."""

from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.swin_transformer import SwinTransformerBlockV2

from train.noise import DropPath


class DroppedBasicBlock(BasicBlock):  # type: ignore[misc]
    """Two convolutions and a shortcut."""

    drop_path: DropPath

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.drop_path(self.bn2(self.conv2(out)))
        out += identity
        activated: Tensor = self.relu(out)
        return activated


class DroppedBottleneck(Bottleneck):  # type: ignore[misc]
    """Three convolutions and a shortcut."""

    drop_path: DropPath

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.drop_path(self.bn3(self.conv3(out)))
        out += identity
        activated: Tensor = self.relu(out)
        return activated


class DroppedSwinBlock(SwinTransformerBlockV2):  # type: ignore[misc]
    """Window attention and a feed-forward layer, dropped independently (torchvision's share one module)."""

    drop_path_mlp: DropPath

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.stochastic_depth(self.norm1(self.attn(x)))
        x = x + self.drop_path_mlp(self.norm2(self.mlp(x)))
        return x

"""The backbone of the paper's ImageNet table, for detectors too."""

from collections.abc import Iterable, Sequence

import torch.utils.checkpoint
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers.arguments import check, is_whole
from ..registry import MODELS

# Blocks a stage, and the kernels of a block's convolutions.
DEPTHS = {
    18: ((2, 2, 2, 2), (3, 3)),
    34: ((3, 4, 6, 3), (3, 3)),
    50: ((3, 4, 6, 3), (1, 3, 1)),
    101: ((3, 4, 23, 3), (1, 3, 1)),
    152: ((3, 8, 36, 3), (1, 3, 1)),
}
EXPANSION = 4  # of a bottleneck: its output has as many times its width


class PreActBlock(BaseModule):
    """A residual block whose norms and activations stand before convolutions.

    ``x + conv(act(norm(...conv(act(norm(x))))))``: no norm is without an
    activation, and none acts on the sum. A shortcut that changes the shape is
    a convolution of the first ``act(norm(x))``.

    Not made of mmcv's ``ConvModule`` in the order norm, act, conv: in it
    ``fuse_conv_bn`` would fold a BN into the convolution *behind* it.

    Args:
        in_channels (int): Channels of the input.
        width (int): Channels between the convolutions.
        kernels (Sequence[int]): Kernel sizes of the convolutions: (3, 3), or
            (1, 3, 1) for a bottleneck.
        stride (int): Of the first 3x3 convolution and of the shortcut.
        conv_cfg (dict, optional): Of the convolutions.
        norm_cfg (dict): Of the norms.
        with_cp (bool): Whether to compute the convolutions again in backward
            rather than to keep what is between them.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, width: int, kernels: Sequence[int],
                 stride: int, conv_cfg: dict | None, norm_cfg: dict,
                 with_cp: bool) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.out_channels = width * (EXPANSION if len(kernels) == 3 else 1)
        widths = [in_channels, *[width] * (len(kernels) - 1),
                  self.out_channels]
        strided = kernels.index(3)
        self.norms = []
        for i, kernel in enumerate(kernels):
            name, norm = build_norm_layer(norm_cfg, widths[i], postfix=i + 1)
            self.norms.append(name)
            self.add_module(name, norm)
            # one for each norm, so that any of them can become a TLU
            self.add_module(f'relu{i + 1}', nn.ReLU(inplace=True))
            self.add_module(f'conv{i + 1}', build_conv_layer(
                conv_cfg, widths[i], widths[i + 1], kernel,
                stride=stride if i == strided else 1, padding=kernel // 2,
                bias=False))
        # last, so that fuse_conv_bn finds no norm behind it
        self.downsample = None
        if stride != 1 or in_channels != self.out_channels:
            self.downsample = build_conv_layer(
                conv_cfg, in_channels, self.out_channels, 1, stride=stride,
                bias=False)

    def preact(self, x: Tensor) -> Tensor:
        """The input, normed and activated."""
        return self._activate(x, 1)

    def forward(self, x: Tensor, preact: Tensor | None = None) -> Tensor:
        """The sum of residual and shortcut.

        Args:
            x (Tensor): The sum of the block before.
            preact (Tensor, optional): Of ``x``, where it is there already.
        """
        preact = self.preact(x) if preact is None else preact
        shortcut = x if self.downsample is None else self.downsample(preact)
        if self.with_cp and preact.requires_grad:
            residual = torch.utils.checkpoint.checkpoint(
                self._residual, preact, use_reentrant=False)
        else:
            residual = self._residual(preact)
        return shortcut + residual

    def _residual(self, preact: Tensor) -> Tensor:
        x = self.conv1(preact)
        for i in range(2, len(self.norms) + 1):
            x = getattr(self, f'conv{i}')(self._activate(x, i))
        return x

    def _activate(self, x: Tensor, i: int) -> Tensor:
        norm = getattr(self, self.norms[i - 1])
        return getattr(self, f'relu{i}')(norm(x))


class PreActStage(Sequential):
    """Blocks of one width, the first of which may have a stride."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the last block.

        And what comes in as normed and activated by the first, which is how
        the output of the stage before leaves the backbone.
        """
        first, *others = self
        preact = first.preact(x)
        x = first(x, preact)
        for block in others:
            x = block(x)
        return preact, x


@MODELS.register_module()
class ResNetV2(BaseModule):
    """Pre-activation ResNet, for detectors and classifiers.

    He et al., *Identity Mappings in Deep Residual Networks* (2016), the
    ResNetV2-50 of the FRN paper's table. Every norm has its activation and no
    activation acts on a sum, so each threshold is fused into its norm.

    The variant is timm's ``resnetv2_50``, and He's own: a stage's stride is
    in its first block, so that the stages have strides 4, 8, 16 and 32 as
    mmdet's ResNet has them. (TensorFlow slim's puts it into a stage's last
    block: 8, 16, 32, 32. It has the same parameters, but for biases in the
    stem and behind each block's last convolution, which a norm follows.) The
    stem has neither norm nor activation.

    An output is a stage's sum, normed and activated: by the first norm of the
    next stage, or by the norm behind the last one, which is there only if that
    output is asked for. So all of them come from a classifier's checkpoint,
    and those of a detector need no more parameters.

    Args:
        depth (int): 18, 34, 50, 101 or 152.
        in_channels (int): Channels of the image. Defaults to 3.
        stem_channels (int, optional): Channels of the stem. Defaults to
            ``base_channels``.
        base_channels (int): Width of the first stage's blocks, doubled by
            each later one. Defaults to 64.
        num_stages (int): 1 to 4. Defaults to 4.
        strides (Sequence[int]): Of the stages. Defaults to (1, 2, 2, 2).
        out_indices (Sequence[int]): Which stages' outputs are given.
            Defaults to all four; a classifier needs the last.
        frozen_stages (int): The stem (0) and so many stages do not train;
            the norm of the last one's output does. Defaults to -1: all train.
        conv_cfg (dict, optional): Of the convolutions.
        norm_cfg (dict): Of the norms. Defaults to BN.
        norm_eval (bool): Whether BN keeps its statistics in training, as in
            mmdet's ResNet that starts from a checkpoint. Defaults to False.
        with_cp (bool): Whether the blocks' convolutions are computed again in
            backward, which saves memory. Defaults to False.
        init_cfg (dict or list[dict], optional): Defaults to mmdet's: Kaiming
            for convolutions, 1 for norms.

    Shape:
        (N, in_channels, H, W) to a tuple of (N, C_i, H / s_i, W / s_i).

    Raises:
        ConfigError: If ``depth``, ``num_stages``, ``strides``,
            ``out_indices``, ``frozen_stages`` or ``norm_cfg`` do not fit.
    """

    def __init__(self,
                 depth: int,
                 in_channels: int = 3,
                 stem_channels: int | None = None,
                 base_channels: int = 64,
                 num_stages: int = 4,
                 strides: Sequence[int] = (1, 2, 2, 2),
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 conv_cfg: dict | None = None,
                 norm_cfg: dict = dict(type='BN'),  # noqa: B006  (not changed)
                 norm_eval: bool = False,
                 with_cp: bool = False,
                 init_cfg: dict | list | None = None) -> None:
        _check(depth, num_stages, strides, out_indices, frozen_stages,
               norm_cfg)
        super().__init__(init_cfg or [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm'])
        ])
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        channels = stem_channels or base_channels
        self.stem = nn.Sequential(
            build_conv_layer(conv_cfg, in_channels, channels, 7, stride=2,
                             padding=3, bias=False),
            nn.MaxPool2d(3, stride=2, padding=1))
        blocks, kernels = DEPTHS[depth]
        self.layers = []
        for i in range(num_stages):
            stage = PreActStage()
            for j in range(blocks[i]):
                stage.append(PreActBlock(
                    channels, base_channels * 2**i, kernels,
                    strides[i] if j == 0 else 1, conv_cfg, norm_cfg, with_cp))
                channels = stage[-1].out_channels
            self.layers.append(f'layer{i + 1}')
            self.add_module(self.layers[-1], stage)
        if num_stages - 1 in out_indices:
            self.norm_name, norm = build_norm_layer(norm_cfg, channels)
            self.add_module(self.norm_name, norm)
            self.relu = nn.ReLU(inplace=True)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Give the outputs of the stages in ``out_indices``."""
        x = self.stem(x)
        normed = []
        for layer in self.layers:
            preact, x = getattr(self, layer)(x)
            normed.append(preact)
        if len(self.layers) - 1 in self.out_indices:
            normed.append(self.relu(getattr(self, self.norm_name)(x)))
        # the first is the stem's
        return tuple(normed[i + 1] for i in self.out_indices)

    def train(self, mode: bool = True) -> 'ResNetV2':
        """As ``nn.Module.train``, but for what is frozen."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        frozen = ['stem', *self.layers[:max(self.frozen_stages, 0)]]
        for name in frozen if self.frozen_stages >= 0 else ():
            getattr(self, name).eval().requires_grad_(False)


def _check(depth: int, num_stages: int, strides: Sequence[int],
           out_indices: Sequence[int], frozen_stages: int,
           norm_cfg: dict) -> None:
    check('ResNetV2', 'depth', depth, _among([depth], DEPTHS),
          f'one of {", ".join(map(str, DEPTHS))}')
    check('ResNetV2', 'num_stages', num_stages,
          _among([num_stages], range(1, 5)), 'a whole number from 1 to 4')
    check('ResNetV2', 'strides', strides,
          _among(strides, range(1, 33)) and len(strides) == num_stages,
          f'{num_stages} whole numbers from 1 up, one for each stage')
    check('ResNetV2', 'out_indices', out_indices,
          _among(out_indices, range(num_stages)) and len(out_indices) > 0,
          f'a list of some of the stages 0 to {num_stages - 1}')
    check('ResNetV2', 'frozen_stages', frozen_stages,
          _among([frozen_stages], range(-1, num_stages + 1)),
          f'a whole number from -1 to {num_stages}')
    check('ResNetV2', 'norm_cfg', norm_cfg, isinstance(norm_cfg, dict),
          'a dict with type')


def _among(values: object, choices: Iterable[int]) -> bool:
    """Whether it is a list of whole numbers that may be chosen."""
    return isinstance(values, (list, tuple)) and all(
        is_whole(value) and value in choices for value in values)

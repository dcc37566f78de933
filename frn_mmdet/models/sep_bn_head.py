"""RetinaNet's head with a batch norm for each pyramid level."""

import copy

from mmdet.models.dense_heads import RetinaSepBNHead as MMDetHead
from torch import nn

from ..registry import MODELS


@MODELS.register_module()
class RetinaSepBNHead(MMDetHead):
    """As mmdet's, and its norms fold into its convolutions.

    mmdet's levels share a convolution as a module. Whoever folds norms into
    convolutions (mmcv's and mmengine's ``fuse_conv_bn``) then folds those of
    all levels into the one. Here each level has a convolution of its own
    with the shared weight in it, so that a fold replaces the weight of one
    level. Parameters, their names and the state dict are mmdet's.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        for levels in (self.cls_convs, self.reg_convs):
            for level in levels[1:]:
                for module in level:
                    module.conv = _with_the_same_weight(module.conv)


def _with_the_same_weight(conv: nn.Conv2d) -> nn.Conv2d:
    """A copy of a layer that has the layer's own parameters."""
    shared = {id(p): p for p in conv.parameters()}
    return copy.deepcopy(conv, shared)

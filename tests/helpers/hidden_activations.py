"""Modules that hide an activation behind a norm, each in another way."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import nn
from torch.utils.checkpoint import checkpoint

from frn_mmdet import FRN

torch.library.define('hidden_activations::gelu', '(Tensor x) -> Tensor')
torch.library.impl('hidden_activations::gelu', 'CompositeExplicitAutograd',
                   F.gelu)


def conv(channels=8, inputs=8, **kwargs):
    """A ConvModule whose norm is FRN."""
    return ConvModule(inputs, channels, 1, norm_cfg=dict(type='FRN'),
                      **kwargs)


class Behind(nn.Module):
    """``act`` on the output of an FRN, however ``act`` gets there."""

    def __init__(self, act=None):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.norm = FRN(8)
        self.last = nn.Conv2d(8, 8, 1)
        if act is not None:
            self.act = act

    def forward(self, x):
        return self.last(self.activate(self.norm(self.conv(x))))

    def activate(self, x):
        return self.act(x)


def function(act):
    """A class that calls ``act``, a function."""
    return type('Behind', (Behind, ), dict(activate=lambda self, x: act(x)))()


def hooked():
    """A ReLU in a hook of the norm."""
    module = Behind(nn.Identity())
    module.norm.register_forward_hook(lambda norm, args, x: F.relu(x))
    return module


class ByName(Behind):
    """No attribute of the ``forward`` names the ReLU."""

    def activate(self, x):
        return getattr(self, 'a' + 'ct')(x)


class InAList(Behind):

    def __init__(self):
        super().__init__()
        self.acts = nn.ModuleList([nn.Identity(), nn.ReLU()])

    def activate(self, x):
        for act in self.acts:
            x = act(x)
        return x


class Wrapper(nn.Module):

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class OnASum(Behind):
    """The activation is behind two norms and a sum."""

    def __init__(self):
        super().__init__(nn.ReLU(inplace=True))
        self.other = conv(act_cfg=None)

    def activate(self, x):
        y = self.other(x)
        y += x
        return self.act(y)


class OnAConcatenation(Behind):

    def __init__(self):
        super().__init__(nn.ReLU())
        self.last = nn.Conv2d(16, 8, 1)

    def activate(self, x):
        return self.act(torch.cat([x, x.flip(1)], 1))


class IntoABuffer(Behind):

    def activate(self, x):
        buffer = x.new_zeros(x.shape)
        buffer[:, ::2] = x[:, ::2]
        return self.act(buffer)


class OnTokens(Behind):
    """On (N, L, C)."""

    def activate(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.act(tokens).transpose(1, 2).view(x.shape)


class OnASumOfTokens(Behind):

    def activate(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.act(tokens + tokens.mean(1, keepdim=True))
        return tokens.transpose(1, 2).view(x.shape)


class ThereAndBack(Behind):
    """The channels are moved, and moved back before the activation."""

    def activate(self, x):
        y = x.permute(0, 2, 3, 1) * 2
        return self.act(y.permute(0, 3, 1, 2))


class UsedTwice(Behind):
    """The norm's output is used with the activation and without."""

    def activate(self, x):
        return self.act(x) - x


class Shared(nn.Module):
    """One activation behind two norms and a sum, as in mmdet's blocks."""

    def __init__(self):
        super().__init__()
        self.first = conv(act_cfg=None)
        self.second = conv(act_cfg=None)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.second(self.act(self.first(x)))
        return self.act(y + x)


class InTrainingOnly(Behind):

    def activate(self, x):
        return self.act(x) if self.training else x


class WithGradientsOnly(Behind):
    """As blocks do that save memory in test."""

    def activate(self, x):
        return self.act(x) if torch.is_grad_enabled() else x


class IfItNeedsGradients(Behind):

    def activate(self, x):
        return self.act(x) if x.requires_grad else x


class InTheSecondRun(WithGradientsOnly):
    """A re-entrant checkpoint: first without gradients, then with."""

    def activate(self, x):
        if not x.requires_grad:
            return super().activate(x)
        return checkpoint(super().activate, x, use_reentrant=True)


class OnAValue(Behind):
    """A branch that zeros and noise do not take."""

    def activate(self, x):
        return self.act(x) if x.mean() > 5 else x


class UnknownInTraining(Behind):

    def activate(self, x):
        return x.tan() if self.training else x


class SharedWithoutNorm(Behind):
    """One activation behind a norm and behind none."""

    def activate(self, x):
        return self.act(self.last(self.act(x)))


class Several(nn.Module):
    """One activation on several maps that are returned in a list."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([conv(8, act_cfg=None),
                                    conv(16, act_cfg=None)])
        self.act = nn.ReLU()

    def forward(self, x):
        maps = [conv(x) for conv in self.convs]
        return [self.act(y + y.mean()) for y in maps]


class RawInTraining(Behind):
    """In training the norm's output is used without the activation, too."""

    def activate(self, x):
        return self.act(x) + (x.mean() if self.training else 0)


class AlsoInTraining(Behind):
    """In training the activation acts without a norm, too."""

    def activate(self, x):
        return self.act(self.act(self.last(x)) if self.training else x)


class ReaderInTraining(nn.Module):
    """A shared activation, whose sum goes elsewhere in training."""

    def __init__(self):
        super().__init__()
        self.first = conv(16, act_cfg=None)
        self.second = conv(inputs=16, act_cfg=None)
        self.last = nn.Conv2d(8, 8, 1)
        self.act = nn.ReLU()

    def forward(self, x):
        y = self.act(self.second(self.act(self.first(x))) + x)
        z = self.last(y)
        return z + y if self.training else z


class TakesMore(ReaderInTraining):
    """What the activation goes to takes something else as well."""

    def forward(self, x):
        y = self.act(self.second(self.act(self.first(x))) + x)
        return self.last(y) + self.last(x)


class Block(nn.Module):
    """A residual block that may leave out its last activation."""

    def __init__(self, width=16):
        super().__init__()
        self.first = conv(width, act_cfg=None)
        self.second = conv(inputs=width, act_cfg=None)
        self.act = nn.ReLU()

    def forward(self, x, last=True):
        y = self.second(self.act(self.first(x))) + x
        return self.act(y) if last else y


class ByFlag(nn.Module):

    def __init__(self, width=16):
        super().__init__()
        self.block = Block(width)

    def forward(self, x):
        return self.block(self.block(x, last=False))


class Twice(Block):

    def forward(self, x):
        y = super().forward(x)
        return [y, y]


class Doubled(nn.Module):
    """Both outputs of the block, which are the same."""

    def __init__(self):
        super().__init__()
        self.block = Twice()

    def forward(self, x):
        a, b = self.block(x)
        return a * b


class OldName(OnASum):
    """A ReLU in place, whose return value nobody takes."""

    def activate(self, x):
        y = self.other(x)
        y += x
        self.act(y)
        return y


class PartInPlace(OnASum):

    def activate(self, x):
        y = self.other(x)
        y += x
        self.act(y[:, :4])
        return y


class HasATlu(Block):

    def __init__(self):
        super().__init__()
        self.tlu = nn.Identity()


class Parts(nn.Module):
    """One activation on parts of other channels."""

    def __init__(self):
        super().__init__()
        self.conv = conv(act_cfg=None)
        self.act = nn.ReLU()

    def forward(self, x):
        parts = (self.conv(x) * 2).split([2, 6], 1)
        return torch.cat([self.act(part) for part in parts], 1)


class Levels(nn.Module):
    """One activation for each level of a pyramid, whose maps are used raw."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([conv(act_cfg=None), conv(act_cfg=None)])
        self.last = nn.Conv2d(8, 8, 1)
        self.act = nn.ReLU()

    def forward(self, x):
        maps = [conv(x) for conv in self.convs]
        return [self.last(self.act(y)) - y for y in maps]


class Alias(Behind):
    """The activation has two names; one of them is for training."""

    def __init__(self):
        super().__init__(nn.ReLU())
        self.same = self.act

    def activate(self, x):
        return self.same(x) if self.training else self.act(x)


# What can be placed, with the thresholds that it then has; then what cannot,
# with what the error starts with.
PLACED = dict(
    dropout=(lambda: nn.Sequential(
        nn.Conv2d(8, 8, 1), FRN(8), nn.Dropout(), nn.ReLU(),
        nn.Conv2d(8, 8, 1)), 1),
    conv_modules=(lambda: nn.Sequential(
        conv(act_cfg=None), conv(order=('act', 'conv', 'norm'))), 1),
    nested=(lambda: nn.Sequential(
        nn.Sequential(nn.Sequential(conv(act_cfg=None))),
        nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU())),
        nn.Conv2d(8, 8, 1)), 1),
    module=(lambda: Behind(nn.ReLU()), 1),
    in_place=(lambda: Behind(nn.ReLU(inplace=True)), 1),
    by_name=(lambda: ByName(nn.ReLU()), 1),
    in_a_list=(InAList, 1),
    wrapped=(lambda: Behind(Wrapper(Wrapper(nn.ReLU()))), 1),
    wrapped_norm=(lambda: nn.Sequential(
        Wrapper(conv(act_cfg=None)), nn.ReLU(), nn.Conv2d(8, 8, 1)), 1),
    pooled=(lambda: Behind(nn.Sequential(nn.MaxPool2d(2), nn.ReLU())), 1),
    enlarged=(lambda: Behind(nn.Sequential(
        nn.Upsample(scale_factor=2, mode='bilinear'), nn.ReLU())), 1),
    on_a_sum=(OnASum, 1),
    on_a_concatenation=(OnAConcatenation, 1),
    into_a_buffer=(lambda: IntoABuffer(nn.ReLU()), 1),
    on_tokens=(lambda: OnTokens(nn.ReLU()), 1),
    there_and_back=(lambda: ThereAndBack(nn.ReLU()), 1),
    used_twice=(lambda: UsedTwice(nn.ReLU()), 1),
    twice=(lambda: Behind(nn.Sequential(nn.ReLU(), nn.ReLU())), 1),
    shared=(Shared, 2),
    levels=(Levels, 1),
    by_flag=(lambda: ByFlag(8), 1),  # one for all: the channels are the same
    raw_in_training=(lambda: RawInTraining(nn.ReLU()), 1),
    alias=(Alias, 1),
    one_object_twice=(lambda: nn.Sequential(
        *[conv(act_cfg=None), act := nn.ReLU(), conv(act_cfg=None), act,
          nn.Conv2d(8, 8, 1)]), 2),
    several=(Several, 2),
)
REFUSED = dict(
    function=(lambda: function(F.relu), 'backbone.forward (relu)'),
    method=(lambda: function(lambda x: x.relu_()), 'backbone.forward (relu)'),
    clamp=(lambda: function(lambda x: x.clamp(min=0)),
           'backbone.forward (clamp)'),
    clip=(lambda: function(lambda x: x.clip(0)), 'backbone.forward (clamp)'),
    maximum=(lambda: function(lambda x: torch.maximum(x, x.new_zeros(()))),
             'backbone.forward (maximum)'),
    threshold=(lambda: function(lambda x: F.threshold(x, 0, 0)),
               'backbone.forward (threshold)'),
    mask=(lambda: function(lambda x: x * (x > 0)), 'backbone.forward (gt)'),
    where=(lambda: function(lambda x: torch.where(x < 0, 0., x)),
           'backbone.forward (lt)'),
    absolute=(lambda: function(lambda x: (x + x.abs()) / 2),
              'backbone.forward (abs)'),
    swish=(lambda: function(lambda x: x * x.sigmoid()),
           'backbone.forward (sigmoid)'),
    relu6=(lambda: Behind(nn.ReLU6()), 'backbone.act: ReLU6'),
    leaky=(lambda: Behind(nn.LeakyReLU()), 'backbone.act: LeakyReLU'),
    silu=(lambda: Behind(nn.SiLU()), 'backbone.act: SiLU'),
    prelu=(lambda: Behind(nn.PReLU()), 'backbone.act: PReLU'),
    sum_of_tokens=(lambda: OnASumOfTokens(nn.ReLU()), 'backbone.act: acts'),
    foreach=(lambda: function(
        lambda x: torch._foreach_clamp_min([x], 0)[0]),
             'backbone.forward (clamp_min)'),
    signbit=(lambda: function(lambda x: x * ~x.signbit()),
             'backbone.forward (signbit)'),
    swish_by_hand=(lambda: function(lambda x: x / (1 + (-x).exp())),
                   'backbone.forward (exp)'),
    flat_swish=(lambda: function(
        lambda x: x * x.flatten(1).sigmoid().view_as(x)),
                'backbone.forward (sigmoid)'),
    also_in_training=(lambda: AlsoInTraining(nn.ReLU()),
                      'backbone.act: does not act'),
    reader_in_training=(ReaderInTraining, 'backbone.act: '),
    takes_more=(TakesMore, 'backbone.act: acts'),
    by_flag=(ByFlag, 'backbone.block.act: '),
    doubled=(Doubled, 'backbone.block.act: acts'),
    old_name=(OldName, 'backbone.act: acts'),
    part_in_place=(PartInPlace, 'backbone.act: acts'),
    has_a_tlu=(HasATlu, 'backbone.act: acts'),
    parts=(Parts, 'backbone.act: acts'),
    hook_on_the_norm=(hooked, 'backbone.norm.forward (relu)'),
    in_training=(lambda: InTrainingOnly(nn.ReLU()), 'backbone.act: does'),
    with_gradients=(lambda: WithGradientsOnly(nn.ReLU()),
                    'backbone.act: does'),
    if_it_needs_gradients=(lambda: IfItNeedsGradients(nn.ReLU()),
                           'backbone.act: does'),
    in_the_second_run=(lambda: InTheSecondRun(nn.ReLU()),
                       'backbone.act: does'),
    value_branch=(lambda: OnAValue(nn.ReLU()),
                  'backbone.norm: backbone takes a number out of'),
    number=(lambda: function(lambda x: x * max(x.max().item(), 0)),
            'backbone.norm: backbone takes a number out of'),
    equal=(lambda: function(
        lambda x: x if torch.equal(x, x.flip(1)) else x.relu()),
           'backbone.norm: backbone takes a number out of'),
    unknown=(lambda: function(lambda x: x * (x.atan() + 1.57)),
             'backbone.norm: backbone hands what it gives to atan, an '
             'unknown operation'),
    of_a_library=(lambda: function(torch.ops.hidden_activations.gelu),
                  'backbone.norm: backbone hands what it gives to '
                  'hidden_activations::gelu'),
    unknown_in_training=(lambda: UnknownInTraining(),
                         'backbone.norm: backbone hands what it gives to '
                         'tan'),
    without_norm=(lambda: SharedWithoutNorm(nn.ReLU()), 'backbone.act: acts'),
)

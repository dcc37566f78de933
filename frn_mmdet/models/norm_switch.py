"""The mixin that gives a detector its ``norm_cfg``."""

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import torch.distributed as dist
from mmengine.device import get_device
from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import ConfigError
from ..layers.arguments import divisor
from ..switch.apply import apply_plan
from ..switch.checkpoint import (
    check_prefixed,
    forget_missing,
    prepare,
    watch,
)
from ..switch.config import bn_eps, set_norms
from ..switch.family import types_of
from ..switch.incoming import Incoming
from ..switch.marks import marks_of, read_marks
from ..switch.norms import NormPlan, parse_norm_cfg, part_of
from ..switch.place import check_traced
from ..switch.report import describe_stayed, describe_switch
from ..switch.sites import channels_of, norms_of
from ..switch.stock_settings import adjust_settings
from .own_area import (
    batch_of,
    over_own_areas,
    predict_by_shape,
    watch_heads,
)


class NormSwitch:
    """Give a detector, or a classifier, one ``norm_cfg`` for all its norms.

    Put it before the detector's class, which has to be complete when its
    ``__init__`` returns::

        @MODELS.register_module()
        class MyDetector(NormSwitch, TheClassThatItWas):
            pass

    Args:
        norm_cfg (str or dict, optional): The name of a norm, or a dict with
            ``type`` (the name), the layer's own arguments, ``tlu`` (whether
            activations that follow a norm become TLU), ``ws`` (whether the
            convolutions that feed a norm have standardized weights),
            ``parts`` (which of backbone, neck, head), ``from_bn`` (how
            the norm starts from weights that were trained with BN: a number
            from 0 up, or False for no pretrained weights) and ``own_area``
            (whether the images of a batch run without the padding that
            others of it bring: 'test', True for training as well, or
            False). None: the detector is exactly mmdet's.
        **kwargs: The arguments of the class. They are not changed.

    Attributes:
        types_of (str): The package in whose registry the types of the config
            are: mmdet, or mmpretrain.
        switch_outcome (Outcome or None): What became of the norms, see
            :class:`~frn_mmdet.switch.apply.Outcome`; None without norm_cfg.

    Raises:
        ConfigError: If ``norm_cfg`` is neither a string nor a dict, if the
            norm, one of its arguments or its groups do not fit, if an
            activation behind a norm cannot become a TLU, or if there is no
            norm to switch, or one that a subclass has built later.
    """

    types_of = 'mmdet'

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        first = next(base for base in cls.__mro__[1:] if issubclass(
            base, (NormSwitch, nn.Module)))
        if not issubclass(first, NormSwitch):
            raise TypeError(
                f'class {cls.__name__}: put NormSwitch in front of '
                f'{first.__name__}, which would leave no norm_cfg to it')
        if '__init__' in vars(cls):
            cls.__init__ = _then_checked(cls.__init__)

    def __init__(self,
                 norm_cfg: str | dict | None = None,
                 **kwargs) -> None:
        self._norm_plan = None
        self.switch_outcome = None
        self._missing = []
        if norm_cfg is None:
            super().__init__(**kwargs)
            return
        plan = parse_norm_cfg(norm_cfg)
        given, kwargs = kwargs, copy.deepcopy(kwargs)
        with types_of(self.types_of):
            self._bn_eps = bn_eps(kwargs, plan)
            changed = set_norms(kwargs, plan) + adjust_settings(kwargs, plan)
        try:
            super().__init__(**kwargs)
        except ValueError as error:
            if 'num_groups' not in plan.norm_cfg or (
                    'num_groups' not in str(error)):
                raise
            groups = self._groups_that_divide(given, plan)
            raise ConfigError(
                f'model.norm_cfg.num_groups: {error}; num_groups={groups} '
                'divides the channels of every layer') from error
        if not _kinds(self, plan) and _has_own_init(type(self)):
            raise _too_late(type(self), 'its norms')
        outcome = self.switch_outcome = apply_plan(self, plan)
        self._bn_eps |= outcome.bn_eps
        self._marks = marks_of(outcome.sites, plan)
        watch(self, plan, self._bn_eps, self._marks)
        self._norm_plan = plan
        if plan.own_area:
            watch_heads(self)
        self._switched = _kinds(self, plan)
        print_log(describe_switch(plan, outcome, changed), logger='current')
        if outcome.stayed:
            print_log(describe_stayed(plan, outcome.stayed), 'current',
                      logging.WARNING)

    def _groups_that_divide(self, kwargs: dict, plan: NormPlan) -> int:
        """The most groups, of those asked for, that every layer can have."""
        kwargs = copy.deepcopy(kwargs)
        one = replace(plan, norm_cfg=plan.norm_cfg | dict(num_groups=1))
        with types_of(self.types_of):
            set_norms(kwargs, one)
        super().__init__(**kwargs)
        channels = math.gcd(*(
            channels_of(norm) for path, norm in norms_of(self)
            if plan.norm.is_layer(norm) and part_of(path) in plan.parts))
        return divisor(channels, plan.norm_cfg['num_groups'])

    def _check_nothing_new(self) -> None:
        """Refuse norms that a subclass has built after ``__init__`` here."""
        if '_norm_plan' not in vars(self):
            raise TypeError(
                f'class {type(self).__name__}: __init__ must call '
                'super().__init__(), which is how norm_cfg reaches it')
        if self._norm_plan is None:
            return
        for path, kind in _kinds(self, self._norm_plan).items():
            if kind is not self._switched.get(path):
                raise _too_late(type(self), path)

    def train(self, mode: bool = True) -> 'NormSwitch':
        """As ``nn.Module.train``, but with the norm that was asked for.

        In one process mmengine would make BN of SyncBN and train on, and
        whoever makes SyncBN of BN makes it of BRN, too.

        Raises:
            ConfigError: If SyncBN is to train without a process group, or
                without a GPU, or in the place of BRN, or if mmengine's
                ``efficient_conv_bn_eval`` took what it cannot fold.
        """
        if mode and self._norm_plan is not None:
            self._check_synced(self._norm_plan)
            check_traced(self)
        return super().train(mode)

    def _check_synced(self, plan: NormPlan) -> None:
        if plan.synced and not (
                dist.is_initialized() and get_device() == 'cuda'):
            raise ConfigError(
                'model.norm_cfg: SyncBN trains on GPUs in a process group, '
                'and here is none; start with tools/dist_train.sh (or '
                '--launcher), or choose FRN, GN or BN')
        if plan.norm.batch and plan.norm.goes_on_from_bn and any(
                isinstance(module, nn.SyncBatchNorm)
                for module in self.modules()):
            raise ConfigError(
                f'model.norm_cfg: {plan.name} was made SyncBN, which is '
                'another norm; leave out sync_bn (convert_sync_batchnorm), or '
                'choose SyncBN')

    def init_weights(self) -> None:
        """As mmdet's; a checkpoint that is not there may not be needed."""
        if self._norm_plan is not None:
            self._missing = forget_missing(self)
            if not self.is_init:
                check_prefixed(self, self._norm_plan, self._marks)
        if self._missing:
            print_log(f'no such checkpoint: {", ".join(self._missing)}; '
                      'unless another is loaded, training will not start',
                      'current', logging.WARNING)
        super().init_weights()

    def loss(self, batch_inputs: Tensor,
             batch_data_samples: list | None = None, *args, **kwargs) -> dict:
        """As mmdet's, but not from weights that nobody has loaded.

        With ``own_area=True`` each image's maps are over its own area.

        Raises:
            ConfigError: If the config's checkpoint was not found, and no
                other loaded since.
        """
        if self._missing:
            raise ConfigError(
                f'no such checkpoint: {", ".join(self._missing)}; give the '
                "file, or None for the part's init_cfg to train from scratch")
        with over_own_areas(batch_inputs, batch_data_samples,
                            self.has_own_area(training=True)):
            return super().loss(
                batch_inputs, batch_data_samples, *args, **kwargs)

    def predict(self, batch_inputs: Tensor,
                batch_data_samples: list | None = None, *args,
                **kwargs) -> list:
        """As mmdet's; each image as if it were alone, if of its own area."""
        if not self.has_own_area(training=False):
            return super().predict(
                batch_inputs, batch_data_samples, *args, **kwargs)
        return predict_by_shape(
            super().predict, batch_inputs, batch_data_samples, *args, **kwargs)

    def _forward(self, batch_inputs: Tensor,
                 batch_data_samples: list | None = None, *args,
                 **kwargs) -> Any:
        with over_own_areas(batch_inputs, batch_data_samples,
                            self.has_own_area(self.training)):
            return super()._forward(
                batch_inputs, batch_data_samples, *args, **kwargs)

    def extract_feat(self, batch_inputs: Tensor, *args, **kwargs) -> Any:
        """As mmdet's; of several shapes, over each image's own area."""
        batch = batch_of(batch_inputs)
        if batch is None:
            return super().extract_feat(batch_inputs, *args, **kwargs)
        return batch.extract_feat(super().extract_feat, *args, **kwargs)

    def has_own_area(self, training: bool) -> bool:
        """Whether the images of a batch run in their own shapes."""
        plan = self._norm_plan
        return plan is not None and (
            plan.own_area is True or not training and bool(plan.own_area))

    def _load_from_state_dict(self, state_dict: dict, prefix: str,
                              local_metadata: dict, *args, **kwargs) -> None:
        # Here, since mmengine does not call load_state_dict().
        if self._norm_plan is not None:
            prepare(Incoming(self, state_dict, prefix, '', self._norm_plan,
                             self._bn_eps, read_marks(local_metadata)),
                    self._marks)
            self._missing = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      *args, **kwargs)


def _kinds(model: nn.Module, plan: NormPlan) -> dict[str, type]:
    """The class of each norm in the plan's parts, by path."""
    return {path: type(norm) for path, norm in norms_of(model)
            if part_of(path) in plan.parts}


def _then_checked(init: Callable) -> Callable:
    """An ``__init__`` that leaves no norm behind that norm_cfg missed."""

    @wraps(init)
    def __init__(self, *args, **kwargs) -> None:
        init(self, *args, **kwargs)
        self._check_nothing_new()

    return __init__


def _has_own_init(cls: type) -> bool:
    """Whether a subclass goes on after ``NormSwitch.__init__``."""
    subclasses = cls.__mro__[:cls.__mro__.index(NormSwitch)]
    return any('__init__' in vars(subclass) for subclass in subclasses)


def _too_late(cls: type, what: str) -> ConfigError:
    name = cls.__name__
    return ConfigError(
        f'model.norm_cfg: {name} builds {what} after super().__init__(), '
        'where norm_cfg does not reach; take NormSwitch out of its bases and '
        f'write class Switched{name}(NormSwitch, {name}): pass')

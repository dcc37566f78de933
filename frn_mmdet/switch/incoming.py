"""A state dict on its way into a switched detector, or a part of one."""

from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from .marks import Marks, is_same_norm
from .norms import NormPlan, part_of


@dataclass(frozen=True)
class Incoming:
    """What is loaded, and what it is loaded into.

    Attributes:
        module (nn.Module): A detector, its norms switched, or something in
            it.
        state_dict (dict): What is being loaded. A part that is not in it (a
            backbone alone, say) is not looked at.
        prefix (str): Of the module's keys in it.
        at (str): Path of the module in the detector, '' for itself.
        plan (NormPlan): What ``model.norm_cfg`` asks for.
        bn_eps (dict[str, float]): eps of the BNs that the config had, by
            path in the config; see :func:`~frn_mmdet.switch.config.bn_eps`.
        said (dict): What the state dict says of itself, see
            :func:`~.marks.read_marks`.
    """

    module: nn.Module
    state_dict: dict
    prefix: str
    at: str
    plan: NormPlan
    bn_eps: dict[str, float] = field(default_factory=dict)
    said: Marks = field(default_factory=dict)

    @cached_property
    def own(self) -> set[str]:
        """The module's keys, as the state dict would name them."""
        return {f'{self.prefix}{key}' for key in self.module.state_dict()}

    def where(self, path: str) -> str:
        """The path in the detector of something in the module."""
        return '.'.join(filter(None, (self.at, path)))

    def part(self, key: str) -> str:
        """The part that a key of the module, in the state dict, is of."""
        return part_of(self.where(key[len(self.prefix):]))

    def is_of(self, part: str, norm: str) -> bool | None:
        """Whether the state dict has a norm in a part.

        Returns:
            bool or None: None where it does not say.
        """
        there = self.said.get(part, {}).get('type')
        return None if there is None else is_same_norm(there, norm)

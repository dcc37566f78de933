"""Scale the steps of gamma and beta: a hook of study_pretrained.py."""

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class NormSteps(Hook):
    """Multiply what each step changes of the norms that go on from BN.

    Args:
        factor (float): Of all. Defaults to 1.
        alike (bool): Of a channel also by the size of its gamma at the
            start, over the mean of all, so that all channels change alike
            beside what they are. Defaults to False.
    """

    def __init__(self, factor=1., alike=False):
        self.factor, self.alike = factor, alike

    def before_train(self, runner):
        """Look at the norms as they start."""
        norms = [module for module in runner.model.modules()
                 if getattr(module, 'ref_mean', None) is not None]
        gammas = [norm.weight.detach().abs() for norm in norms]
        mean = torch.cat(gammas).mean()
        self.scaled = [
            (parameter, self.factor * (gamma / mean if self.alike else 1.))
            for norm, gamma in zip(norms, gammas, strict=True)
            for parameter in (norm.weight, norm.bias)]

    def before_train_iter(self, runner, *args, **kwargs):
        """Keep what there is."""
        self.before = [p.detach().clone() for p, _ in self.scaled]

    @torch.no_grad()
    def after_train_iter(self, runner, *args, **kwargs):
        """Go a part of the way."""
        for (parameter, factor), before in zip(
                self.scaled, self.before, strict=True):
            parameter.copy_(before + (parameter - before) * factor)

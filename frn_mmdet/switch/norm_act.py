"""Take norms apart that have their activation inside.

Some packages have one module for both, a subclass of PyTorch's norm whose
``forward`` goes on with its children. Whether it does, and nothing else, is
tried on numbers, so no such class has to be known by name.
"""

import copy

import torch
from torch import nn

from .flow import is_plain_norm
from .place import replace_module
from .sites import channels_of, norms_of
from .ws import attributes_of


def split_norms(model: nn.Module) -> None:
    """Replace, in place, each such module by its norm and its children.

    They stand in a Sequential, the norm under the name ``norm``, with the
    parameters that they had.

    Args:
        model (nn.Module): Any that is not a norm itself.
    """
    for path, module in list(norms_of(model)):
        if not is_plain_norm(module) and _is_norm_then_children(module):
            replace_module(model, path, _norm_then_children(module))


def _norm_then_children(module: nn.Module) -> nn.Module:
    base = next(cls for cls in type(module).__mro__
                if cls.__module__.startswith('torch.nn.'))
    norm = base.__new__(base)
    vars(norm).update(attributes_of(module), _modules={})
    parts = nn.Sequential()
    for name, part in dict(norm=norm, **module._modules).items():
        parts.add_module(name, part)
    parts.training = module.training
    return parts


def _is_norm_then_children(module: nn.Module) -> bool:
    """Whether both give the same for any parameters and statistics."""
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    generator = torch.Generator().manual_seed(0)
    try:
        whole = copy.deepcopy(module).cpu().float().eval()
        for x in (*whole.parameters(), *whole.buffers()):
            if x.is_floating_point():
                x.data.uniform_(.5, 1.5, generator=generator)
        x = torch.randn(2, channels_of(whole), 3, 3, generator=generator)
        with torch.no_grad():
            given, wanted = (part(x.clone()) for part in (
                _norm_then_children(whole), whole))
        return torch.allclose(given, wanted)
    except Exception:  # any: it is a user's own code
        return False

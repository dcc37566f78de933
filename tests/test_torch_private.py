"""What is taken of PyTorch that may go; each test says what to do then."""

import re
from pathlib import Path

import torch
from torch import nn
from torch.autograd import forward_ad

from frn_mmdet import torch_private

PACKAGE = Path(torch_private.__file__).parent


def test_nothing_private_is_taken_elsewhere():
    """A call of torch._C and the like belongs into torch_private.py."""
    private = re.compile(r'torch\._[A-Za-z]|torch[\w.]*\._\w+ import'
                         r'|from torch[\w.]* import \(?\s*_|forward_ad\._')
    for path in PACKAGE.rglob('*.py'):
        if path.name != 'torch_private.py':
            found = private.findall(path.read_text())
            # the base of BN's family is what mmcv and mmengine build on
            found = [x for x in found if 'batchnorm' not in x
                     and x != 'from torch.nn.modules.batchnorm import _']
            assert found == [], path


def test_below_autograd():
    """Else: Tensor operators in a torch.autograd.Function's forward."""
    x = torch.ones(2, requires_grad=True)
    with torch_private.below_autograd():
        assert not torch.ops.aten.mul.Tensor(x, x).requires_grad
    assert torch.ops.aten.mul.Tensor(x, x).requires_grad


def test_functorch_is_active():
    """Else: torch.compiler's question for it, or ``setup_context`` alone."""
    seen = []

    def function(x):
        seen.append(torch_private.functorch_is_active())
        return x.sum()

    function(torch.ones(2))
    torch.func.grad(function)(torch.ones(2))
    assert seen == [False, True]


def test_forward_mode_is_active():
    """Else: ask whether ``fwAD.unpack_dual(x)`` has a tangent."""
    assert not torch_private.forward_mode_is_active()
    with forward_ad.dual_level():
        assert torch_private.forward_mode_is_active()
    assert not torch_private.forward_mode_is_active()


def test_has_kernel():
    """Else: load the library and call the operator once."""
    assert torch_private.has_kernel('aten::mul.Tensor', 'CPU')
    assert not torch_private.has_kernel('frn_mmdet::frn', 'MPS')


def test_current_raw_stream():
    """Else: ``torch.cuda.current_stream(device).cuda_stream``."""
    if torch.version.cuda:
        assert callable(torch_private.current_raw_stream)
    else:
        assert torch_private.current_raw_stream is None


def test_without_modes():
    """Else: pop the modes by leaving their contexts, and enter them again."""
    seen = []

    class Mode(torch_private.TorchDispatchMode):

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **kwargs or {})

    with Mode():
        with torch_private.without_modes():
            torch.ones(2) + 1
        assert seen == []
        torch.ones(2) + 1
    assert seen


def test_dropout_is_the_base_of_every_dropout():
    """Else: a tuple of the classes that there are."""
    for kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
                 nn.AlphaDropout, nn.FeatureAlphaDropout):
        assert isinstance(kind(), torch_private.Dropout)

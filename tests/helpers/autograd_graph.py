"""Look into autograd's graph: does a ReLU act on what an FRN or TLU gave?

Nothing of the plugin's own way to find that out is used here.
"""

import re
from contextlib import contextmanager

from frn_mmdet import FRN, TLU

CLIPS = re.compile('Relu|Clamp|Threshold|Hardtanh|Maximum|Fmax|Silu|Gelu|Elu|'
                   'Hardswish|Mish|Softplus')
# What mixes channels or normalises: behind it, it is another map.
MIXERS = re.compile('Convolution|Addmm|MmBackward|Bmm|Norm|DeformConv|Linear')


@contextmanager
def outputs_of(model, layers=(FRN, TLU)):
    """Collect the graph's nodes of every output of these layers."""
    nodes = []

    def collect(module, args, output):
        nodes.append(output.grad_fn)

    handles = [module.register_forward_hook(collect)
               for module in model.modules() if isinstance(module, layers)]
    yield nodes
    for handle in handles:
        handle.remove()


def clips_behind(result, nodes):
    """Names of the clipping operations that act on one of the nodes."""
    nodes = set(nodes)
    found = []
    for node in _ancestors(result.grad_fn, stop=lambda node: False):
        if CLIPS.search(node.name()) and node not in nodes:
            before = _ancestors(*_next(node), stop=lambda n: n in nodes or (
                MIXERS.search(n.name())))
            if any(other in nodes for other in before):
                found.append(node.name())
    return found


def _next(node):
    return [n for n, _ in node.next_functions if n is not None]


def _ancestors(*start, stop):
    seen, todo = set(), list(start)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if not stop(node):
            todo += _next(node)


def total(value):
    """The sum of all tensors in nested lists, tuples and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return sum(total(item) for item in value)
    return value.float().sum()



"""Watch one forward pass: what acts on the output of each norm.

Which activation follows a norm is a fact of the data, not of names: it may be
a module, a function, a method, in place, in a wrapper, two calls away or
behind a sum. So the tensors are watched. The output of a norm gets a mark;
operations hand the mark on until one mixes channels (a convolution, a matrix
product) or normalises again; and an operation that is an activation leaves
an :class:`Act`.

Not seen: what the run does not reach (a branch on the size of the batch),
what leaves PyTorch (NumPy, another thread), and a map written into a buffer
by way of a view that is older than it.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
)
from torch.utils.weak import WeakIdKeyDictionary

from ..layers import TLU
from .norms import is_norm

# ATen operations, without the underscore of those in place.
# These give what they are given, if in another shape or a part of it.
SAME_VALUES = {
    '_reshape_alias', '_to_copy', '_unsafe_view', 'alias', 'as_strided',
    'clone', 'contiguous', 'detach', 'expand', 'lift_fresh', 'permute',
    'reshape', 'select', 'slice', 'split', 'split_with_sizes', 'squeeze', 't',
    'transpose', 'unbind', 'unsafe_split', 'unsqueeze', 'view'
}
# These look at the shape only.
NO_VALUES = {
    'empty_like', 'full_like', 'new_empty', 'new_empty_strided', 'new_full',
    'new_ones', 'new_zeros', 'ones_like', 'rand_like', 'randn_like',
    'zeros_like'
}
# Behind these stands something new. A norm is among them as a function; as a
# module it gets a mark of its own.
NEW_VALUES = {
    '_convolution', '_log_softmax', '_native_batch_norm_legit',
    '_native_batch_norm_legit_no_training', '_softmax', 'addbmm', 'addmm',
    'addmv', 'baddbmm', 'batch_norm', 'bmm', 'convolution', 'dot',
    'embedding', 'frn', 'linalg_vector_norm', 'linear', 'mkldnn_convolution',
    'mm', 'mv', 'native_batch_norm', 'native_group_norm', 'native_layer_norm',
    'norm', '_scaled_dot_product_flash_attention_for_cpu', 'std', 'var',
    'var_mean'
}
# Convolutions and products, and what a map of sums of theirs is made by.
PRODUCTS = {
    '_convolution', 'addbmm', 'addmm', 'baddbmm', 'bmm', 'convolution',
    'linear', 'mkldnn_convolution', 'mm'
}
SUMS = {
    '_adaptive_avg_pool2d', 'add', 'avg_pool2d', 'cat', 'constant_pad_nd',
    'div', 'max_pool2d_with_indices', 'mean', 'stack', 'sub', 'sum',
    'upsample_bilinear2d', 'upsample_nearest2d'
}
# These are 0, or near it, for whatever is below a number. A TLU in front of
# one is of no use, so none may be left behind a TLU, either.
CLIPS = {
    '_prelu_kernel', 'celu', 'clamp', 'clamp_min', 'elu', 'fmax', 'gelu',
    'hardswish', 'hardtanh', 'leaky_relu', 'maximum', 'mish', 'relu',
    'rrelu_with_noise', 'selu', 'silu', 'softplus', 'threshold'
}
# Comparisons, signs and absolute values make a ReLU by hand: x * (x > 0).
OTHER_ACTIVATIONS = {
    'abs', 'bucketize', 'clamp_max', 'copysign', 'erf', 'erfc', 'exp',
    'expm1', 'fmin', 'ge', 'glu', 'gt', 'hardshrink', 'hardsigmoid',
    'heaviside', 'hypot', 'le', 'log_sigmoid_forward', 'logaddexp',
    'logaddexp2', 'lt', 'minimum', 'sgn', 'sigmoid', 'sign', 'signbit',
    'softshrink', 'tanh'
}
# Of a map they are its activation; of the mean of one, a gate.
GATES = {'hardsigmoid', 'sigmoid', 'tanh'}


class Mark(NamedTuple):
    """What a tensor is made of.

    Attributes:
        norms (frozenset[str]): Paths of the norms in it on which nothing has
            acted yet.
        done (frozenset[str]): Of those on which something has.
        pure (bool): Whether it is the output of one norm, or of what acted
            on that, as it was.
        dim (int or None): Which of its dimensions is the channels'. None:
            not known any more.
        act (Act or None): That it is the very output of.
        old (bool): Whether it is what that act changed in place; by itself
            what it gave is another tensor here.
    """

    norms: frozenset
    done: frozenset = frozenset()
    pure: bool = True
    dim: int | None = 1
    act: 'Act | None' = None
    old: bool = False


@dataclass(eq=False)
class Act:
    """One time that an activation acted.

    Attributes:
        op (str): ATen's name of the operation; 'tlu' for that of a TLU.
        module (str): Path of the innermost module that was running.
        mark (Mark or None): Of what it acted on; None: no norm is in it.
        channels (int or None): Of what it acted on. None: its channels are
            not the second dimension.
        time (int): When, in calls of modules.
        after (tuple or None): Where what it gave is returned, used by nobody
            before: path of the innermost module around it, number of the
            output and number of outputs. None for both: it is the output.
        readers (set): Before that: paths of the modules that took what it
            gave as their input; None for whatever else used it. Neither a
            Sequential nor a norm is meant: nothing can be hung on one.
        in_place (bool): Whether it was in place, and what it acted on was
            used by its old name.
    """

    op: str
    module: str
    mark: Mark | None
    channels: int | None
    time: int
    after: tuple | None = None
    readers: set = field(default_factory=set)
    in_place: bool = False


class Call(NamedTuple):
    """A call of a module that is running, its first argument and its names."""

    path: str
    module: nn.Module
    first: Any
    time: int
    keywords: frozenset = frozenset()


class Seen(NamedTuple):
    """A norm that ran.

    Attributes:
        shape (tuple): Of its input.
        time (int): When, in calls of modules.
        fed_by (str or None): Path of the module that gave its input; None:
            an operation did.
        convs (frozenset[str]): Paths of the modules with the convolutions,
            or products of another kind, of which its input is made, by sums
            and poolings at most.
        keywords (frozenset[str]): Names of the arguments that it was called
            with; ConvNeXt's norms get a ``data_format``.
    """

    shape: tuple
    time: int
    fed_by: str | None = None
    convs: frozenset = frozenset()
    keywords: frozenset = frozenset()


@dataclass
class Flow:
    """What a forward pass has shown.

    Attributes:
        norms (dict[str, Seen]): By path, in the order of the data. A norm
            that never ran is not there.
        acts (list[Act]): In the same order.
        used (set[str]): Norms whose output is also used as it is.
        escaped (set[str]): Norms whose output left a part that ran on its
            own, or whose class has a ``forward`` of its own: what acts on it
            there is not known.
        apart (set[str]): Norms that ran in a part on its own only, on a map
            that was made up.
        taken (dict[str, set]): What a module took as its input, by its path:
            acts, or None for anything else.
        returned (dict[str, list]): What a module gave back, likewise: a list
            of acts or None a call.
        ran (set[int]): id() of the norms that ran, which may have several
            paths.
        failures (list[str]): Why some of the model did not run.
    """

    norms: dict = field(default_factory=dict)
    acts: list = field(default_factory=list)
    used: set = field(default_factory=set)
    escaped: set = field(default_factory=set)
    apart: set = field(default_factory=set)
    taken: dict = field(default_factory=lambda: defaultdict(set))
    returned: dict = field(default_factory=lambda: defaultdict(list))
    ran: set = field(default_factory=set)
    failures: list = field(default_factory=list)


def watch_flow(model: nn.Module,
               run: Callable[[nn.Module, Flow], list[tuple[Any, bool]]],
               training: bool = False) -> Flow:
    """Run a model once and see what acts on the output of its norms.

    Nothing of the model changes, statistics and random numbers included.

    Args:
        model (nn.Module): Any; its parameters need not be initialised.
        run (callable): Calls the model, or parts of it, and returns pairs:
            what came out, and whether of the whole model. It may look at the
            flow so far and adds to its ``failures``. There are no gradients.
        training (bool): Whether in training mode, but for dropout, which
            would be seen as an operation. Defaults to False.

    Returns:
        Flow: What was seen.
    """
    watcher = _Watcher()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_own_random_numbers(model))
        stack.enter_context(in_mode(model, training))
        for path, module in model.named_modules():
            stack.enter_context(watcher.hooks(path, module))
        stack.enter_context(watcher)
        for output, whole in run(model, watcher.flow):
            watcher.end(output, whole)
    return watcher.flow


def is_plain_norm(module: nn.Module) -> bool:
    """Whether a norm only normalises: neither a class of a user's, nor more.

    Another one may activate as well, in its ``forward`` or in a hook.
    """
    known = ('torch.', 'mmcv.', 'mmengine.', 'frn_mmdet.')
    return is_norm(module) and type(module).__module__.startswith(known) and (
        'forward' not in vars(module))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif is_dataclass(value):
        yield from tensors_in(vars(value))


class _Watcher(TorchDispatchMode):
    """Keeps the marks, while operations and modules are called.

    One norm stands in for all: it has no weights to be initialised, no
    statistics to be changed, and takes any shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow()
        self.marks = WeakIdKeyDictionary()
        self.made_by = WeakIdKeyDictionary()
        self.convs = WeakIdKeyDictionary()
        self.calls: list[Call] = []
        self.time = 0

    @contextmanager
    def hooks(self, path: str, module: nn.Module) -> Iterator[None]:
        """Follow the calls of a module; stand in for it, if it is a norm."""
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            yield
            return
        is_plain = is_plain_norm(module)
        patched = 'forward' in vars(module)

        def enter(module, args, kwargs):
            self.time += 1
            first = args[0] if args else None
            self.calls.append(
                Call(path, module, first, self.time, frozenset(kwargs)))
            self.flow.taken[path].add(self._act_of(first))

        def mark(module, args, output):
            if is_norm(module) and isinstance(output, Tensor):
                self._normed(self.calls[-1], output, is_plain)

        def leave(module, args, output):
            call = self.calls.pop()
            if isinstance(output, Tensor):
                self.made_by.setdefault(output, path)
                if _has_filters(module):  # a deformable one, say
                    self.convs.setdefault(output, frozenset({path}))
            self._leave(call, output)
            return self._renamed(call, output)

        def normalise(*args, **kwargs):
            return F.group_norm(next(iter((*args, *kwargs.values()))), 1)

        handles = [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            # A norm's own hooks may act on its output.
            module.register_forward_hook(mark, prepend=True),
            module.register_forward_hook(leave, always_call=True)
        ]
        stands_in = normalise if is_plain else (
            self._act_as_tlu if isinstance(module, TLU) else None)
        if stands_in and not patched:
            module.forward = stands_in
        try:
            yield
        finally:
            if stands_in and not patched:
                del module.forward
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [(x, self.marks[x]) for x in tensors_in((args, kwargs))
                 if x in self.marks]
        output = func(*args, **kwargs)
        name = func._schema.name.partition('::')[2].removesuffix(
            '_').removeprefix('_foreach_')
        if given:
            self._passed(name, args, given, output)
        elif name == 'relu':  # a module that acts on norms, too, perhaps
            self._acted(name, None, args[0], output, self.calls[-1:])
        self._follow_convs(name, args, output)
        return output

    def _follow_convs(self, name: str, args: tuple, output: Any) -> None:
        if name in PRODUCTS:
            convs = frozenset({self.calls[-1].path if self.calls else ''})
        elif name in SAME_VALUES or name in SUMS:
            convs = frozenset().union(*(
                self.convs.get(x, ()) for x in tensors_in(args)))
        else:
            return
        for x in tensors_in(output) if convs else ():
            self.convs[x] = convs

    def _passed(self, name: str, args: tuple, given: list,
                output: Any) -> None:
        """An operation took tensors with marks."""
        if name in NO_VALUES:
            return
        marks = [mark for _, mark in given]
        if name == 'cat' and self._is_of_one_act(args, marks):
            self.marks[output] = marks[0]
            return
        for x, mark in given:
            if mark.old:
                mark.act.in_place = True
            elif mark.act is not None:
                self._read(mark.act, x)
        dims = {m.dim for m in marks if m.dim is not None}
        mark = Mark(
            frozenset().union(*(m.norms for m in marks)),
            frozenset().union(*(m.done for m in marks)),
            pure=len(given) == 1 and marks[0].pure,
            dim=dims.pop() if len(dims) == 1 else None)
        if self._acts(name, args, given[0][0], mark):
            self._acted(name, mark, given[0][0], output, self.calls[-1:])
            return
        if name not in SAME_VALUES:
            self._use(marks)
            mark = mark._replace(pure=False)
        for x in tensors_in(output):
            if name in NEW_VALUES or not x.is_floating_point():
                self.marks.pop(x, None)
                continue
            self.marks[x] = mark = mark._replace(
                dim=_follow_channels(name, args, given[0][0], x, mark.dim))
            if x._base is not None and any(x is y for y in tensors_in(args)):
                self.marks[x._base] = mark._replace(pure=False)  # in place

    def _is_of_one_act(self, args: tuple, marks: list[Mark]) -> bool:
        """Of its maps for several images, which TridentNet puts together."""
        return len(args[0]) == len(marks) and args[1:] in ((), (0, )) and all(
            mark.act is not None and mark.act.module == marks[0].act.module
            for mark in marks)

    def _use(self, marks: list[Mark]) -> None:
        self.flow.used.update(*(m.norms for m in marks if m.pure))

    def _acts(self, name: str, args: tuple, x: Tensor, mark: Mark) -> bool:
        if mark.norms:
            is_gate = (name in GATES and x.dim() > 2
                       and x.shape[2:].numel() == 1)
            return name in CLIPS or name in OTHER_ACTIVATIONS and not is_gate
        # The maximum of two maps that have been activated is none.
        return name in CLIPS and not (name in ('maximum', 'fmax') and all(
            x in self.marks for x in tensors_in(args)))

    def _acted(self, name: str, mark: Mark | None, x: Tensor, output: Any,
               running: list[Call]) -> None:
        call = running[0] if running else Call('', None, None, 0)
        channels = x.shape[1] if mark is not None and mark.dim == 1 else None
        act = Act(name, call.path, mark, channels, call.time)
        self.flow.acts.append(act)
        if mark is None:
            return
        if output is x and x._base is not None:
            act.in_place = True  # of part of something
        for y in tensors_in(output):
            if y.is_floating_point():
                self.marks[y] = Mark(frozenset(), mark.norms | mark.done,
                                     mark.pure, mark.dim, act)

    def _act_as_tlu(self, x: Tensor) -> Tensor:
        mark = self.marks.get(x)
        output = x.clone()
        self._acted('tlu', mark, x, output, self.calls[-1:])
        return output

    def _normed(self, call: Call, output: Tensor, is_plain: bool) -> None:
        """A norm gave its output, a TLU of its own included."""
        self.flow.ran.add(id(call.module))
        if not is_plain:
            self.flow.escaped.add(call.path)
        self.flow.norms.setdefault(
            call.path, Seen(tuple(output.shape), call.time,
                            self.made_by.get(call.first),
                            self.convs.get(call.first, frozenset()),
                            call.keywords))
        self._use([self.marks[x] for x in tensors_in(call.first)
                   if x in self.marks])
        mark = Mark(frozenset({call.path}))
        if getattr(call.module, 'tau', None) is not None:
            self._acted('tlu', mark, output, output, [call])
        else:
            self.marks[output] = mark

    def _read(self, act: Act, x: Tensor) -> None:
        """Something takes ``x``, which an activation gave."""
        if act.after is None:
            act.readers.add(
                next((call.path for call in self.calls
                      if call.time > act.time and call.first is x
                      and not isinstance(call.module, nn.Sequential)
                      and not is_norm(call.module)), None))

    def _act_of(self, x: Any) -> Act | None:
        mark = self.marks.get(x) if isinstance(x, Tensor) else None
        return mark.act if mark else None

    def _leave(self, call: Call, output: Any) -> None:
        """A module returns; perhaps what an activation in it gave."""
        if isinstance(call.module, nn.Sequential) or output is None:
            return  # nothing is hung on it, or it has failed
        alone = type(output) not in (list, tuple)
        acts = [self._act_of(x) for x in ([output] if alone else output)]
        self.flow.returned[call.path].append(acts)
        for i, act in enumerate(acts):
            if act is not None and call.time < act.time and (
                    act.after is None and not act.readers):
                act.after = (call.path, None, None) if alone else (
                    call.path, i, len(acts))

    def _renamed(self, call: Call, output: Any) -> Any:
        """What an activation changed in place, as another tensor.

        So that it shows whether its old name is used any more: a TLU in its
        place would change nothing there.
        """
        act = self._act_of(output)
        if act is None or output is not call.first or act.time != call.time:
            return output
        with _disable_current_modes():
            renamed = output.detach()
        self.marks[renamed] = self.marks[output]
        self.marks[output] = self.marks[output]._replace(old=True)
        return renamed

    def end(self, output: Any, whole: bool) -> None:
        """A run is over: what it gave is used by whoever called."""
        marks = [self.marks[x] for x in tensors_in(output) if x in self.marks]
        self._use(marks)
        if not whole:
            self.flow.escaped.update(*(mark.norms for mark in marks))


def _has_filters(module: nn.Module) -> bool:
    weight = module._parameters.get('weight')
    return weight is not None and weight.dim() > 2


def _follow_channels(name: str, args: tuple, x: Tensor, y: Tensor,
                     dim: int | None) -> int | None:
    """Which dimension of ``y``, made of ``x``, is the channels'."""
    if dim is None:
        return None
    if name == 'permute':
        return [d % x.dim() for d in args[1]].index(dim)
    if name in ('transpose', 't'):
        swapped = [d % x.dim() for d in args[1:3] or (0, 1)]
        return swapped[1 - swapped.index(dim)] if dim in swapped else dim
    if name in ('_reshape_alias', '_unsafe_view', 'reshape', 'view'):
        return dim if x.shape[:dim + 1] == y.shape[:dim + 1] else None
    return dim if x.dim() == y.dim() else None


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """As ``train(training)``, but for what a class makes of that.

    A backbone freezes its stages in it, say. Buffers are as before in the
    end.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for module, _ in modes:
        module.training = training and not isinstance(
            module, nn.modules.dropout._DropoutNd)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, before in buffers:
            buffer.copy_(before)


@contextmanager
def _own_random_numbers(model: nn.Module) -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    gpus = sorted({p.device.index for p in model.parameters()
                   if p.device.type == 'cuda'})
    with torch.random.fork_rng(gpus):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])

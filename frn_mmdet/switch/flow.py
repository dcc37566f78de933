"""Watch one forward pass: what acts on the output of each norm.

Which activation follows a norm is a fact of the data, not of names: it may be
a module, a function, a method, in place, in a wrapper, two calls away or
behind a sum. So the tensors are watched. The output of a norm gets a mark;
operations hand the mark on until one mixes channels (a convolution, a matrix
product) or normalises again; and an operation that is an activation leaves
an :class:`Act`.

Where an operation is not known, or a number is taken out of a map, nobody
knows what follows, and that is noted.

Not seen: what the run does not reach (a branch on the size of the batch),
what leaves PyTorch (NumPy, another thread, an operation of a library that
PyTorch does not call itself), and a map written into a buffer by way of a
view that is older than it.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, is_dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakIdKeyDictionary

from ..layers import TLU
from ..torch_private import Dropout, TorchDispatchMode, without_modes
from .light_copy import NoProducts, Zeros, light_copy
from .norms import is_norm
from .operations import (
    CLIPS,
    GATES,
    KNOWN,
    NEW_VALUES,
    NO_VALUES,
    NUMBERS,
    OTHER_ACTIVATIONS,
    PRODUCTS,
    SAME_VALUES,
    SUMS,
    name_of,
)

# Whose functions with a backward of their own are operations, not modules.
OPERATIONS = ('frn_mmdet.', 'mmcv.', 'torchvision.')


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


class NormCall(NamedTuple):
    """One time that a norm ran.

    Attributes:
        shape (tuple): Of its input.
        running (tuple): Of each ``forward`` that was running, the outermost
            first: path of the module and the number of that call.
    """

    shape: tuple
    running: tuple


@dataclass
class Flow:
    """What a forward pass has shown.

    Attributes:
        norms (dict[str, Seen]): By path, in the order of the data. A norm
            that never ran is not there.
        calls (dict[str, list[NormCall]]): Each time that they ran.
        acts (list[Act]): In the same order.
        used (set[str]): Norms whose output is also used as it is.
        escaped (set[str]): Norms whose output left a part that ran on its
            own, or whose class has a ``forward`` of its own: what acts on it
            there is not known.
        unknown (dict[str, str]): Norms of which it is not known what acts on
            their output, though that was seen: why.
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
    calls: dict = field(default_factory=lambda: defaultdict(list))
    acts: list = field(default_factory=list)
    used: set = field(default_factory=set)
    escaped: set = field(default_factory=set)
    unknown: dict = field(default_factory=dict)
    apart: set = field(default_factory=set)
    taken: dict = field(default_factory=lambda: defaultdict(set))
    returned: dict = field(default_factory=lambda: defaultdict(list))
    ran: set = field(default_factory=set)
    failures: list = field(default_factory=list)


def watch_flow(model: nn.Module,
               run: Callable[[nn.Module, Flow], list[tuple[Any, bool]]],
               training: bool = False) -> Flow:
    """Run a model once and see what acts on the output of its norms.

    A copy runs, see :mod:`.light_copy`, so that nothing of the model changes;
    nor do random numbers.

    Args:
        model (nn.Module): Any; its parameters need not be initialised.
        run (callable): Calls the copy, or parts of it, and returns pairs:
            what came out, and whether of the whole model. It may look at the
            flow so far and adds to its ``failures``.
        training (bool): Whether in training mode, but for dropout, which
            would be seen as an operation, and with gradients; else without.
            Defaults to False.

    Returns:
        Flow: What was seen.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # it has no gradients
        stack.enter_context(torch.set_grad_enabled(training))
        model, zeros = light_copy(model)
        watcher = _Watcher(type(model).__name__, zeros)
        stack.enter_context(_own_random_numbers(model))
        stack.enter_context(in_mode(model, training))
        stack.enter_context(watcher.light_graph())
        for path, module in model.named_modules():
            watcher.follow(path, module)
        stack.enter_context(NoProducts(zeros))
        stack.enter_context(watcher)
        runs = run(model, watcher.flow)
        for output, whole in runs:
            watcher.end(output, whole)
        if training:
            watcher.run_again(model, runs)
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

    def __init__(self, name: str, zeros: Zeros) -> None:
        super().__init__()
        self.name = name
        self.zeros = zeros
        self.flow = Flow()
        self.marks = WeakIdKeyDictionary()
        self.made_by = WeakIdKeyDictionary()
        self.convs = WeakIdKeyDictionary()
        self.calls: list[Call] = []
        self.running: list[tuple[str, int]] = []
        self.numbers = count()
        self.time = 0
        self.in_backward = False

    def follow(self, path: str, module: nn.Module) -> None:
        """Follow the calls of a module; stand in for it, if it is a norm."""
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            return
        is_plain = is_plain_norm(module)

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

        module.register_forward_pre_hook(enter, with_kwargs=True)
        # A norm's own hooks may act on its output.
        module.register_forward_hook(mark, prepend=True)
        module.register_forward_hook(leave, always_call=True)
        if is_plain:
            module.forward = normalise
        elif isinstance(module, TLU) and 'forward' not in vars(module):
            module.forward = self._act_as_tlu
        elif module._modules:
            module.forward = self._counted(path, module.forward)

    def _counted(self, path: str, forward: Callable) -> Callable:
        """A ``forward`` that is also seen where it is not called by hooks."""

        def run(*args, **kwargs):
            self.running.append((path, next(self.numbers)))
            try:
                return forward(*args, **kwargs)
            finally:
                self.running.pop()

        return run

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [(x, self.marks[x]) for x in tensors_in((args, kwargs))
                 if x in self.marks]
        output = func(*args, **kwargs)
        name = name_of(func)
        if self.in_backward and not torch.is_grad_enabled() and (
                name not in SAME_VALUES):
            return output  # it makes gradients
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
        if self._acts(name, args, given[0][0], mark, output):
            self._acted(name, mark, given[0][0], output, self.calls[-1:])
            return
        if name not in SAME_VALUES:
            self._use(marks)
            mark = mark._replace(pure=False)
            self._note_unknown(name, mark, output)
        for x in tensors_in(output):
            if name in NEW_VALUES or not (_is_map(x) or _is_number(x)):
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

    def _note_unknown(self, name: str, mark: Mark, output: Any) -> None:
        """Where nobody can say what becomes of the norms in a mark."""
        if name in NUMBERS:
            what = 'takes a number out of what it gives, to branch on perhaps'
        elif name not in KNOWN and any(True for _ in tensors_in(output)):
            what = f'hands what it gives to {name}, an unknown operation'
        else:
            return
        where = self.calls[-1].path if self.calls else ''
        for norm in mark.norms:
            self.flow.unknown.setdefault(norm, f'{where or self.name} {what}')

    def _acts(self, name: str, args: tuple, x: Tensor, mark: Mark,
              output: Any) -> bool:
        if _is_number(output):
            return False  # what it decides is another matter
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
            if _is_map(y):
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
        self.flow.calls[call.path].append(
            NormCall(tuple(output.shape), tuple(self.running)))
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
        with without_modes():
            renamed = output.clone()
        self.marks[renamed] = self.marks[output]
        self.marks[output] = self.marks[output]._replace(old=True)
        return renamed

    def end(self, output: Any, whole: bool) -> None:
        """A run is over: what it gave is used by whoever called."""
        marks = [self.marks[x] for x in tensors_in(output) if x in self.marks]
        self._use(marks)
        if not whole:
            self.flow.escaped.update(*(mark.norms for mark in marks))

    @contextmanager
    def light_graph(self) -> Iterator[None]:
        """Keep the shapes, not the values, of what is kept for backward."""

        def pack(x):
            if x in self.zeros or x.layout is not torch.strided:
                return x, None
            return (x.shape, x.dtype, x.device), self.marks.get(x)

        def unpack(kept):
            x, mark = kept
            if not isinstance(x, Tensor):
                shape, dtype, device = x
                x = torch.zeros(shape, dtype=dtype, device=device)
            if mark is not None:
                self.marks[x] = mark
            return x

        with saved_tensors_hooks(pack, unpack):
            yield

    def run_again(self, model: nn.Module, runs: list) -> None:
        """Go backward, if that may run modules a second time.

        A re-entrant checkpoint does: first without gradients, then with.
        """
        outputs = [x for x in tensors_in(runs) if x.requires_grad]
        if not _may_run_modules(outputs):
            return
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_forget)
        self.in_backward = True
        try:
            torch.autograd.backward(
                outputs, [torch.zeros_like(x) for x in outputs])
        except Exception as error:  # any: it is a model's own code
            self.flow.failures.append(failure('backward', error))
        finally:
            self.in_backward = False


def _may_run_modules(outputs: list[Tensor]) -> bool:
    """Whether a backward in Python is on the way from some outputs."""
    seen, waiting = set(), [x.grad_fn for x in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = getattr(node, '_forward_cls', None)
        if function and not function.__module__.startswith(OPERATIONS):
            return True
        waiting += [other for other, _ in node.next_functions]
    return False


def failure(what: str, error: Exception) -> str:
    """Say what did not run, and why, in a line."""
    text = str(error).partition('\n')[0]
    return f'{what}: {type(error).__name__}: {text}'


def _forget(parameter: nn.Parameter) -> None:
    parameter.grad = None


def _is_map(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _is_number(x: Any) -> bool:
    return isinstance(x, Tensor) and x.numel() == 1


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

    A backbone freezes its stages in it, say.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = training and not isinstance(
            module, Dropout)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _own_random_numbers(model: nn.Module) -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    gpus = sorted({p.device.index for p in model.parameters()
                   if p.device.type == 'cuda'})
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])

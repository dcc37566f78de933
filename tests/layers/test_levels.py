"""One norm for each level, by the order of the calls in a pass."""

import copy
import pickle
import threading
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from frn_mmdet.layers import BRN, LevelNorms
from frn_mmdet.layers.levels import pass_levels

SIZES = (8, 4, 2)


class Head(nn.Module):
    """As mmdet's: one tower, called for each level."""

    def __init__(self, norm=nn.BatchNorm2d, levels=3):
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), norm(4))
        if levels:
            self.tower[1] = LevelNorms(self.tower[1], levels)
            pass_levels(self, [self.tower[1]])

    def forward(self, maps):
        return [self.tower(x) for x in maps]


def pyramid(count=3, seed=0, batch=2):
    """Maps whose scale differs by level."""
    torch.manual_seed(seed)
    return [torch.randn(batch, 4, size, size) * 3**i + i for i, size in
            enumerate(SIZES[:count])]


@pytest.mark.parametrize('norm', [nn.BatchNorm2d, BRN])
def test_each_level_is_normalised_by_a_norm_of_its_own(norm):
    torch.manual_seed(0)
    head = Head(norm)
    conv, norms = head.tower
    alone = [copy.deepcopy(each) for each in norms]
    for step in range(3):
        maps = pyramid(seed=step)
        for own, x, y in zip(alone, maps, head(maps), strict=True):
            assert torch.equal(own(conv(x)), y)
    head.eval()
    for own, x, y in zip(alone, maps, head(maps), strict=True):
        assert torch.equal(own.eval()(conv(x)), y)
    assert len({each.running_mean[0].item() for each in norms}) == 3


def test_train_and_test_agree_where_one_norm_for_all_does_not():
    gaps = {}
    for levels in (0, 3):
        torch.manual_seed(0)
        head, maps = Head(levels=levels), pyramid(batch=32)
        for _ in range(100):
            train = head(maps)
        test = head.eval()(maps)
        gaps[levels] = max((a - b).abs().max().item()
                           for a, b in zip(train, test, strict=True))
    assert gaps[3] < .02 < 1 < gaps[0]


def test_a_pass_may_have_fewer_levels_and_no_more():
    head = Head().eval()
    for i, norm in enumerate(head.tower[1]):
        norm.running_mean.fill_(i)
    maps = pyramid()
    whole = head(maps)
    assert torch.equal(head(maps[:2])[1], whole[1])
    with pytest.raises(RuntimeError, match='there are 3 levels and this is'):
        head([*maps, maps[0]])
    # nothing is left of a pass that ended early
    for x, y in zip(head.forward(maps), whole, strict=True):
        assert torch.equal(x, y)


def test_outside_of_a_pass_it_is_an_error():
    head = Head()
    with pytest.raises(RuntimeError, match='which level'):
        head.tower(pyramid()[0])
    head(pyramid())
    with pytest.raises(RuntimeError, match='which level'):
        head.tower(pyramid()[0])


def test_a_pass_within_a_pass():
    """Of another module, and of one that runs in the middle of it."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = LevelNorms(nn.BatchNorm2d(4), 3)
            self.head = Head()
            pass_levels(self, [self.norm])

        def forward(self, maps):
            return [self.norm(x) + self.head([x, x])[1] for x in maps]

    outer = Outer()
    outer(pyramid())
    assert [int(norm.num_batches_tracked) for norm in outer.norm] == [1, 1, 1]
    assert [int(norm.num_batches_tracked) for norm in outer.head.tower[1]] == [
        3, 3, 0]


def test_threads_do_not_count_for_each_other():
    head = Head().eval()
    for i, norm in enumerate(head.tower[1]):
        norm.running_mean.fill_(i)
    maps, whole, results = pyramid(), head(pyramid()), {}
    meet = threading.Barrier(2)

    def wait(*_):
        meet.wait(5)

    head.tower[0].register_forward_hook(wait)

    def run(number):
        results[number] = head(maps)

    threads = [threading.Thread(target=run, args=(i, )) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results.values():
        assert all(map(torch.equal, result, whole))
    assert len(results) == 2


@pytest.mark.parametrize('copied', [
    copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))],
    ids=['copy', 'pickle'])
def test_a_copy_counts_for_itself(copied):
    head = Head()
    other = copied(head)
    other(pyramid())
    assert [int(norm.num_batches_tracked) for norm in other.tower[1]] == [
        1, 1, 1]
    assert [int(norm.num_batches_tracked) for norm in head.tower[1]] == [
        0, 0, 0]


@pytest.mark.parametrize('assign', [False, True])
def test_a_checkpoint_of_one_norm_loads_into_each(assign):
    one = Head(levels=0)
    for step in range(3):
        one(pyramid(seed=step))
    head = Head()
    head.load_state_dict(one.state_dict(), assign=assign)
    for x, y in zip(head.eval()(pyramid()), one.eval()(pyramid()),
                    strict=True):
        assert torch.equal(x, y)
    head.train()(pyramid())  # each by itself from here on
    assert len({each.running_mean[0].item() for each in head.tower[1]}) == 3
    again = Head()
    again.load_state_dict(head.state_dict())
    for key, value in head.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_activation_checkpointing():
    """Of all levels, as mmengine wraps a module; not of one by itself."""
    torch.manual_seed(0)
    head = Head()
    wrapped, part = copy.deepcopy(head), copy.deepcopy(head)
    for module in (wrapped, part.tower):
        module.forward = partial(checkpoint, module.forward,
                                 use_reentrant=False)
    maps = [x.requires_grad_() for x in pyramid()]
    sum(y.square().sum() for y in head(maps)).backward()
    sum(y.square().sum() for y in wrapped(maps)).backward()
    for p, q in zip(head.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    with pytest.raises(RuntimeError, match='activation checkpointing'):
        sum(y.square().sum() for y in part(maps)).backward()


def test_what_traces_sees_each_level():

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = Head()

        def forward(self, *maps):
            return tuple(self.head(maps))

    model, maps = Flat().eval(), tuple(pyramid())
    for i, norm in enumerate(model.head.tower[1]):
        norm.running_mean.fill_(i)
    expected = model(*maps)
    for other in (torch.jit.trace(model, maps),
                  torch.export.export(model, maps, strict=False).module()):
        assert all(map(torch.equal, other(*maps), expected))
    graph = torch.fx.symbolic_trace(model.head.tower).graph
    assert [node.target for node in graph.nodes
            if node.op == 'call_module'] == ['0', '1']

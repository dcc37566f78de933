import pytest
import torch

from frn_mmdet.switch import operations
from frn_mmdet.switch.operations import (
    CLIPS,
    FINDS,
    GATES,
    KNOWN,
    MIXES,
    NEW_VALUES,
    NO_VALUES,
    NUMBERS,
    OTHER_ACTIVATIONS,
    PRODUCTS,
    SAME_VALUES,
    SUMS,
    name_of,
)

KINDS = (SAME_VALUES, NO_VALUES, NEW_VALUES, MIXES, FINDS, CLIPS,
         OTHER_ACTIVATIONS, NUMBERS)


@pytest.mark.parametrize('name', sorted(KNOWN))
def test_every_name_is_an_operation(name):
    """Else what it was written for passes as unknown, or as harmless."""
    library, _, operation = name.rpartition('::')
    if library == 'torchvision':  # which need not be there
        return
    there = getattr(torch.ops, library or 'aten')
    assert hasattr(there, operation) or hasattr(there, f'{operation}_')


def test_each_is_of_one_kind():
    assert sum(map(len, KINDS)) == len(KNOWN)
    assert PRODUCTS <= NEW_VALUES
    assert SUMS <= MIXES
    assert GATES <= OTHER_ACTIVATIONS


def test_every_list_is_known():
    lists = [value for value in vars(operations).values()
             if isinstance(value, set)]
    assert set().union(*lists) == KNOWN


@pytest.mark.parametrize('operation, name', [
    (torch.ops.aten.relu_.default, 'relu'),
    (torch.ops.aten._foreach_clamp_min_.Scalar, 'clamp_min'),
    (torch.ops.aten.mean.dim, 'mean'),
    (torch.ops.frn_mmdet.frn.default, 'frn_mmdet::frn'),
])
def test_names(operation, name):
    assert name_of(operation) == name

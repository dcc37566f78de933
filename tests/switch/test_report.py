from frn_mmdet.switch.norms import parse_norm_cfg
from frn_mmdet.switch.report import describe_stayed, describe_switch


def test_counts_by_part(small):
    value = dict(type='FRN', learnable_eps=True, parts=['backbone', 'head'])
    outcome = small('MaskRCNN', value).switch_outcome
    outcome.said.append('c')
    assert describe_switch(parse_norm_cfg(value), outcome, ['a', 'b']) == (
        'model.norm_cfg: FRN(learnable_eps=True), TLU, on backbone, head\n'
        '  backbone: 20 FRN\n'
        '  neck: no norm\n'
        '  head: 8 FRN\n'
        '  activation after a norm: 17 TLU, 11 none\n'
        '  activation after a sum of norms: 8 TLU\n'
        '  in all: 28 norms, 25 TLU\n'
        '  note: c\n'
        '  mended: a\n'
        '  mended: b')


def test_each_norm_that_stayed_is_named():
    stayed = {'neck.a': 'its maps are 1x1', 'neck.b': 'it did not run'}
    assert describe_stayed(parse_norm_cfg('FRN'), stayed) == (
        'model.norm_cfg: not FRN but as they were:\n'
        '  neck.a: its maps are 1x1\n'
        '  neck.b: it did not run')

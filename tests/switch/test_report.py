from frn_mmdet.switch.apply import Outcome
from frn_mmdet.switch.levels import Shared
from frn_mmdet.switch.norms import parse_norm_cfg
from frn_mmdet.switch.report import describe_stayed, describe_switch


def test_counts_by_part(small):
    value = dict(type='FRN', learnable_eps=True, parts=['backbone', 'head'])
    outcome = small('MaskRCNN', value).switch_outcome
    outcome.of_tokens['LayerNorm'] = 3
    assert describe_switch(parse_norm_cfg(value), outcome, ['a', 'b']) == (
        'model.norm_cfg: FRN(learnable_eps=True), TLU, on backbone, head\n'
        '  backbone: 20 FRN\n'
        '  neck: no norm\n'
        '  head: 8 FRN\n'
        '  activation after a norm: 17 TLU, 11 none\n'
        '  activation after a sum of norms: 8 TLU\n'
        '  in all: 28 norms, 25 TLU\n'
        '  padding that other images bring: left out in test (own_area=test)\n'
        '  note: 3 LayerNorm are over tokens or vectors and stay\n'
        '  changed: a\n'
        '  changed: b')


def test_what_else_is_worth_knowing():
    """Each in one line, named by its first norm."""
    outcome = Outcome(
        replaced={'neck.b': 'BN', 'neck.c': 'BN'}, failures=['x', 'y'],
        standardized=7, unfolded=['neck.d'], flat=['neck.e', 'neck.f'])
    text = describe_switch(parse_norm_cfg('FRN'), outcome, [])
    assert text.splitlines()[-5:] == [
        '  note: 7 convolutions that feed FRN have standardized weights',
        '  note: 2 norms that no config names are switched, the first is '
        'neck.b, a BN',
        '  note: could not run on a small image: x',
        '  note: 1 FRN do not follow the convolution before them (neck.d): '
        'fuse_conv_bn would fold them wrong',
        '  note: 2 FRN are over maps of 1x1 (neck.e), of which little is '
        'left; learnable_eps=True softens that']
    outcome = Outcome(
        levels=[Shared('bbox_head.a', 'bbox_head', 5),
                Shared('bbox_head.b', 'bbox_head', 4),
                Shared('neck.c', 'neck', 3)], shared=['mask_head.d'])
    assert describe_switch(parse_norm_cfg('BN'), outcome, []).splitlines()[
        -3:] == [
            '  note: bbox_head: one BN a pyramid level, 5, in place of one '
            'for all of them, at 2 places',
            '  note: neck: one BN a pyramid level, 3, in place of one for '
            'all of them, at 1 places',
            '  note: 1 BN are shared by pyramid levels, whose statistics '
            'differ (mask_head.d); expect a gap between training and test']
    outcome = Outcome(flat=['neck.e'])
    text = describe_switch(parse_norm_cfg('IN'), outcome, [])
    assert text.endswith('GN and LN leave more')


def test_each_norm_that_stayed_is_named():
    stayed = {'neck.a': 'its maps are 1x1', 'neck.b': 'it did not run'}
    assert describe_stayed(parse_norm_cfg('FRN'), stayed) == (
        'model.norm_cfg: these norms are not switched to FRN:\n'
        '  neck.a: its maps are 1x1\n'
        '  neck.b: it did not run')

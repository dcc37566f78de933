from frn_mmdet.switch.norms import parse_norm_cfg
from frn_mmdet.switch.report import describe_switch


def test_counts_by_part(small):
    value = dict(type='FRN', learnable_eps=True, parts=['backbone', 'head'])
    model = small('MaskRCNN', value)
    assert describe_switch(model, parse_norm_cfg(value), ['a', 'b']) == (
        'model.norm_cfg: FRN(learnable_eps=True), TLU, on backbone, head\n'
        '  backbone: 20 FRN\n'
        '  neck: no norm\n'
        '  head: 8 FRN\n'
        '  activation after a norm: 17 TLU, 11 none\n'
        '  activation after a residual add: 8 TLU\n'
        '  in all: 28 norms, 25 TLU\n'
        '  mended: a\n'
        '  mended: b')

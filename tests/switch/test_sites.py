import copy
from collections import Counter

import pytest
import torch
from hidden_activations import PLACED, REFUSED
from torch import nn

from frn_mmdet import FRN, TLU, norm_sites


def count(sites):
    return (Counter(s.norm for s in sites), Counter(s.activation
                                                    for s in sites))


def test_retinanet_r50(build):
    norms, acts = count(norm_sites(build('RetinaNet')))
    assert norms == {'FRN': 69, None: 16}
    assert acts == {'TLU': 57, None: 28}


def test_mask_rcnn_r50_4conv1fc(build):
    sites = norm_sites(
        build('MaskRCNN', options={
            'roi_head.bbox_head.type': 'Shared4Conv1FCBBoxHead'
        }))
    norms, acts = count(sites)
    assert norms == {'FRN': 69, None: 16}
    assert acts == {'TLU': 57, None: 28}


# Norms of a ResNet: the stem, each block, and the four shortcuts but the
# first of the basic blocks. Blocks: He et al., table 1.
@pytest.mark.parametrize('depth, blocks, norms_a_block, shortcuts', [
    (18, 8, 2, 3),
    (34, 16, 2, 3),
    (50, 16, 3, 4),
    (101, 33, 3, 4),
    (152, 50, 3, 4),
])
def test_any_depth(build, depth, blocks, norms_a_block, shortcuts):
    channels = [8, 16, 32, 64] if depth < 50 else [32, 64, 128, 256]
    model = build(
        'RetinaNet',
        dict(type='FRN', parts='backbone'),
        options={
            'backbone.depth': depth, 'backbone.base_channels': 8,
            'backbone.init_cfg': None, 'neck.in_channels': channels
        })
    norms, acts = count(norm_sites(model.backbone))
    inner = norms_a_block - 1
    assert norms == {
        'FRN': 1 + blocks * norms_a_block + shortcuts,
        None: blocks
    }
    assert acts == {
        'TLU': 1 + blocks * inner + blocks,
        None: shortcuts + blocks
    }


@pytest.mark.parametrize('options, stem', [
    ({'backbone.type': 'ResNetV1d'}, 3),
    ({'backbone.type': 'ResNeXt', 'backbone.groups': 32,
      'backbone.base_width': 4}, 1),
])
def test_resnet_variants(build, options, stem):
    norms, acts = count(norm_sites(build('RetinaNet', options=options)))
    assert norms == {'FRN': 68 + stem, None: 16}
    assert acts == {'TLU': 56 + stem, None: 28}


def test_per_level_head(build):
    model = build(
        'RetinaNet',
        options={
            'bbox_head.type': 'RetinaSepBNHead',
            'bbox_head.num_ins': 5
        })
    norms, acts = count(norm_sites(model.bbox_head))
    assert norms == {'FRN': 2 * 4 * 5}
    assert acts == {'TLU': 2 * 4 * 5}


def test_stock_model(build):
    """Norms as mmdet has them: the backbone's, with their ReLU."""
    sites = norm_sites(build('RetinaNet', None))
    assert not any(site.ws for site in sites)
    assert count(sites) == ({'BN': 53, None: 16}, {'ReLU': 49, None: 20})
    assert sites[0][:4] == ('backbone.bn1', 'BN', 'ReLU', 64)
    assert [site[:4] for site in sites[1:7]] == [
        ('backbone.layer1.0.bn1', 'BN', 'ReLU', 64),
        ('backbone.layer1.0.bn2', 'BN', 'ReLU', 64),
        ('backbone.layer1.0.bn3', 'BN', None, 256),
        ('backbone.layer1.0.downsample.1', 'BN', None, 256),
        ('backbone.layer1.0', None, 'ReLU', 256),
        ('backbone.layer1.1.bn1', 'BN', 'ReLU', 64),
    ]


def test_any_module():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), FRN(8), nn.ReLU(), nn.Conv2d(8, 8, 1), FRN(8),
        nn.LayerNorm([8, 4, 4]), nn.Sigmoid())
    assert [site[:4] for site in norm_sites(model)] == [
        ('1', 'FRN', 'ReLU', 8),
        ('4', 'FRN', None, 8),
        ('5', 'LayerNorm', 'Sigmoid', 4),
    ]


@pytest.mark.parametrize('name, expected', [
    ('dropout', [('1', 'FRN', 'ReLU', 8)]),
    ('conv_modules', [('0.norm', 'FRN', 'ReLU', 8),
                      ('1.norm', 'FRN', None, 8)]),
    ('on_a_sum', [('norm', 'FRN', None, 8), ('other.norm', 'FRN', None, 8),
                  ('', None, 'ReLU', 8)]),
    ('function', [('norm', 'FRN', 'relu', 8)]),
    ('clamp', [('norm', 'FRN', 'clamp', 8)]),
    ('value_branch', [('norm', 'FRN', '?', 8)]),
    ('unknown', [('norm', 'FRN', '?', 8)]),
])
def test_hidden_activations_are_listed(name, expected):
    module, _ = (PLACED | REFUSED)[name]
    sites = norm_sites(module())
    assert [s._replace(path=s.path.replace('.frn', '.norm'))[:4]
            for s in sites] == expected


def test_a_norm_that_does_not_run_is_listed_as_unknown():
    model = nn.Sequential(nn.Conv2d(3, 8, 1))
    model.unused = nn.ModuleList([FRN(4)])
    model.forward = lambda x: x
    assert norm_sites(model)[-1].activation == '?'


def test_nothing_of_the_model_changes(small):
    model = small('MaskRCNN', dict(type='BN', tlu=True)).train()
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    norm_sites(model)
    assert torch.equal(torch.get_rng_state(), state)
    for (key, value), other in zip(model.state_dict().items(),
                                   before.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    for module, other in zip(model.modules(), before.modules(), strict=True):
        assert vars(module).keys() == vars(other).keys()
        assert module.training is other.training
        for hooks in ('_forward_hooks', '_forward_pre_hooks'):
            assert len(getattr(module, hooks)) == len(getattr(other, hooks))


def test_on_the_meta_device(small):
    with torch.device('meta'):
        model = small('MaskRCNN')
    assert norm_sites(model) == norm_sites(small('MaskRCNN'))


def test_every_activation_that_runs_behind_a_norm_is_listed(small, losses):
    """Watch a real step: which modules are handed a norm's output as is?"""
    model = small('MaskRCNN', dict(type='GN', num_groups=4))
    outputs, followed = [], {}

    def is_given(module, args):
        for path, output, version in outputs:
            # The residual add changes the last norm's output in place.
            if args and args[0] is output and output._version == version:
                followed.setdefault(path, type(module).__name__)

    for path, module in model.named_modules():
        if isinstance(module, nn.GroupNorm) and type(module) is not TLU:
            module.register_forward_hook(
                lambda module, args, output, path=path: outputs.append(
                    (path, output, output._version)))
        if not list(module.children()):
            module.register_forward_pre_hook(is_given)
    losses(model, with_mask=True)
    listed = {
        s.path: s.activation
        for s in norm_sites(model) if s.norm and s.activation
    }
    assert listed == {p: a for p, a in followed.items() if a == 'ReLU'}

"""Another norm for any network, which no config has built."""

import copy
import logging
import pickle

import pytest
import torch
from autograd_graph import clips_behind, outputs_of
from mmengine.logging import MMLogger
from torch import nn
from torch.nn import functional as F

from frn_mmdet import (
    BRN,
    FRN,
    TLU,
    ConfigError,
    ConvWS,
    norm_sites,
    switch_norms,
)

BN_ITSELF = dict(type='FRN', from_bn=1e30)


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


class Residual(nn.Module):
    """As torchvision's: one ReLU for all, the last behind the sum."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(8, 8), nn.BatchNorm2d(8, eps=1e-3)
        self.conv2, self.bn2 = conv(8, 8), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class PreActivation(nn.Module):

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.convs = nn.ModuleList(conv(8, 8) for _ in range(2))
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.convs):  # noqa: B905
            x = x + layer(self.relu(norm(x)))
        return self.relu(self.norms[2](x)).mean((2, 3))


class Dense(nn.Module):
    """Each norm is over all that came before."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(inplace=True),
                          conv(8 + 4 * i, 4)) for i in range(3))

    def forward(self, x):
        maps = [self.stem(x)]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


def double(inputs, outputs):
    return nn.Sequential(
        conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        conv(outputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class UNet(nn.Module):

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([double(3, 8), double(8, 16)])
        self.bottom = double(16, 16)
        self.up = nn.ModuleList([double(32, 8), double(16, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        kept = []
        for block in self.down:
            kept.append(block(x))
            x = F.max_pool2d(kept[-1], 2)
        x = self.bottom(x)
        for block, y in zip(self.up, kept[::-1]):  # noqa: B905
            x = block(torch.cat([F.interpolate(x, scale_factor=2), y], 1))
        return dict(out=self.head(x))


class NormAct(nn.BatchNorm2d):
    """As timm's: the activation is in the norm."""

    def __init__(self, channels, drop=0.):
        super().__init__(channels)
        self.drop = nn.Dropout(drop)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight,
                         self.bias, self.training, self.momentum, self.eps)
        return self.act(self.drop(y))


class Twice(NormAct):
    """Its forward does more than its children say."""

    def forward(self, x):
        return 2 * super().forward(x)


NETWORKS = dict(
    residual=lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Residual(),
                                   Residual()),
    pre_activation=PreActivation, dense=Dense, unet=UNet,
    norm_act=lambda: nn.Sequential(conv(3, 8), NormAct(8), conv(8, 8),
                                   nn.BatchNorm2d(8)))
# How many norms they have, and how many activations on one, or on a sum.
COUNTS = dict(residual=(4, 4), pre_activation=(3, 3), dense=(3, 3),
              unet=(10, 10), norm_act=(2, 1))
X = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def trained(model):
    """As if its BNs had seen something; each with other numbers."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.running_mean.normal_()
            module.running_var.uniform_(.2, 3.)
            module.num_batches_tracked += 9
            nn.init.uniform_(module.weight, .5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


def value_of(output):
    return output['out'] if isinstance(output, dict) else output


def taus(model):
    return [name for name, _ in model.named_parameters()
            if name.endswith('tau')]


@pytest.mark.parametrize('tlu', [True, False], ids=['TLU', 'ReLU'])
@pytest.mark.parametrize('name', NETWORKS)
def test_at_share_0_it_is_bn_in_test_mode(name, tlu):
    model = trained(NETWORKS[name]()).double()
    expected = value_of(model(X.double()))
    new = switch_norms(model, dict(tlu=tlu, **BN_ITSELF), X.double())
    assert new is model
    assert not model.training
    torch.testing.assert_close(value_of(model(X.double())), expected)
    norms, activations = COUNTS[name]
    assert len([m for m in model.modules() if type(m) is FRN]) == norms
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert len(taus(model)) == activations * tlu


@pytest.mark.parametrize('name', NETWORKS)
def test_every_threshold_learns_and_no_relu_is_left(name):
    model = switch_norms(trained(NETWORKS[name]()), 'FRN', X).train()
    with outputs_of(model) as nodes:
        y = value_of(model(X))
        loss = (y * torch.randn_like(y)).mean()
    assert clips_behind(loss, nodes) == []
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None
            or not p.grad.abs().sum() > 0] == []
    again = pickle.loads(pickle.dumps(copy.deepcopy(model))).eval()
    assert torch.equal(value_of(again(X)), value_of(model.eval()(X)))


def test_a_saved_one_loads_into_a_switched_one():
    model = switch_norms(trained(UNet()), 'FRN', X)
    other = switch_norms(UNet().eval(), 'FRN', X)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X)['out'], model(X)['out'])


def test_from_bn_is_the_share():
    model = switch_norms(trained(UNet()), dict(type='FRN', from_bn=4), X)
    assert {round(m.share, 6) for m in model.modules()
            if type(m) is FRN} == {.2}


@pytest.mark.parametrize('norm', [
    'FRN', 'BN', 'SyncBN', dict(type='GN', num_groups=4), 'LN', 'IN', 'BRN',
    dict(type='GFRN', num_groups=4), 'LFRN', dict(type='BN', tlu=True),
    dict(type='IN', affine=False, tlu=True)])
def test_every_norm_keeps_gamma_and_beta(norm):
    model = trained(UNet())
    bns = {path: copy.deepcopy(m) for path, m in model.named_modules()
           if isinstance(m, nn.BatchNorm2d)}
    switch_norms(model, norm, X)
    value = norm if isinstance(norm, dict) else dict(type=norm)
    for path, bn in bns.items():
        new = model.get_submodule(path)
        if value.get('affine', True):
            assert torch.equal(new.weight, bn.weight)
            assert torch.equal(new.bias, bn.bias)
        if 'BN' in value['type']:
            assert torch.equal(new.running_mean, bn.running_mean)
    assert {s.norm for s in norm_sites(model) if s.norm} == {value['type']}
    if value.get('tlu'):
        assert all(m.tau.requires_grad for m in model.modules()
                   if isinstance(m, TLU))


def test_the_arguments_are_those_of_norm_cfg_also_for_the_same_norm():
    model = trained(UNet())
    expected = model(X)['out']
    switch_norms(model, dict(type='BN', momentum=.5), X)
    assert {m.momentum for m in model.modules()
            if isinstance(m, nn.BatchNorm2d)} == {.5}
    assert torch.equal(model(X)['out'], expected)


def test_brn_is_bn_in_test_mode():
    model = trained(UNet())
    expected = model(X)['out']
    switch_norms(model, 'BRN', X)
    assert sum(type(m) is BRN for m in model.modules()) == 10
    torch.testing.assert_close(model(X)['out'], expected)


def test_a_fresh_network_gets_the_papers_frn():
    model = UNet()
    nn.init.zeros_(model.bottom[4].weight)  # as zero_init_residual does
    switch_norms(model, 'FRN', X)
    norm = model.bottom[4]
    assert norm.ref_mean is None
    assert not norm.weight.any()


def test_from_bn_is_obeyed_by_a_fresh_network_and_false_by_a_trained_one():
    model = switch_norms(UNet(), dict(type='FRN', from_bn=4), X)
    assert round(model.bottom[4].share, 6) == .2
    for name in ('FRN', 'BRN'):
        model = trained(UNet())
        weight = model.bottom[4].weight
        norm = switch_norms(
            model, dict(type=name, from_bn=False), X).bottom[4]
        assert getattr(norm, 'ref_mean', None) is None
        assert not getattr(norm, 'running_mean', torch.zeros(1)).any()
        assert torch.equal(norm.weight, weight)


@pytest.fixture
def warnings():
    """What is logged as a warning."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


@pytest.mark.parametrize('var', [1., 1 - 1e-5])  # 1, but for the eps
def test_statistics_that_are_folded_into_gamma_and_beta(warnings, var):
    """Caffe's weights: FRN cannot tell how large the maps were."""
    model = trained(UNet())
    bn = model.bottom[4]
    bn.running_mean.zero_(), bn.running_var.fill_(var)
    switch_norms(model, 'FRN', X)
    text, = warnings
    assert '1 norms: the BN statistics are of no map' in text
    assert model.bottom[4].share == 0
    assert model.bottom[1].share > 0


def test_weights_are_standardized():
    model = switch_norms(UNet(), dict(type='GN', num_groups=4, ws=True), X)
    assert sum(type(m) is ConvWS for m in model.modules()) == 10
    assert type(model.head) is nn.Conv2d


def test_a_norm_over_maps_of_1x1_stays_and_is_named(warnings):
    model = trained(nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()))
    switch_norms(model, 'FRN', X)
    text, = warnings
    assert text.startswith('norm_cfg: these norms are not switched to FRN:')
    assert '5: its maps are 1x1' in text
    assert [type(model[i]) for i in (1, 5, 6)] == [
        FRN, nn.BatchNorm2d, nn.ReLU]


def test_what_runs_in_training_only_is_switched():
    class Auxiliary(nn.Module):

        def __init__(self):
            super().__init__()
            self.body = double(3, 8)
            self.aux = double(8, 8)

        def forward(self, x):
            x = self.body(x)
            return (x, self.aux(x)) if self.training else x

    model = switch_norms(Auxiliary().eval(), 'FRN', X)
    assert sum(type(m) is FRN for m in model.modules()) == 4
    assert len(taus(model)) == 4


class Functional(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(3, 8), nn.BatchNorm2d(8)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Branches(Functional):

    def forward(self, x):
        x = self.norm(self.conv(x))
        return x if x.mean() > 0 else x.relu()


class InTrainingOnly(Functional):

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.norm(self.conv(x))
        return self.relu(x) if self.training else x


class WithTargets(Functional):

    def forward(self, x, target=None):
        if self.training:
            return self.norm(self.conv(x)) - target
        return self.norm(self.conv(x))


def simple(act=None, norm=None):
    return nn.Sequential(conv(3, 8), norm or nn.BatchNorm2d(8),
                         act or nn.ReLU(), conv(8, 6), nn.BatchNorm2d(6))


@pytest.mark.parametrize('make, norm, words', [
    (lambda: simple(nn.ReLU6()), 'FRN', [
        '2: ReLU6 acts on 1', 'put nn.ReLU', 'norm_cfg.tlu=False']),
    (lambda: simple(norm=nn.Sequential(NormAct(8), nn.SiLU())), 'FRN', [
        '1.1: SiLU acts on 1.0']),
    (Functional, 'FRN', ['Functional (relu)', 'norm (FRN)', 'nn.ReLU']),
    (Branches, 'FRN', ['norm: Branches takes a number']),
    (InTrainingOnly, 'FRN', ['relu: does not act on norm (FRN) in training']),
    (WithTargets, 'FRN', ['does not run', 'training mode']),
    (simple, dict(type='GN', num_groups=4), [
        'norm_cfg.num_groups: 4 does not divide the 6 channels of 4; 2']),
    (simple, 'XN', ['norm_cfg: unknown norm']),
    (simple, dict(type='FRN', parts='head'), ['norm_cfg.parts', 'head']),
    (simple, dict(type='FRN', own_area=True), ['norm_cfg.own_area', 'True']),
    (simple, dict(type='FRN', tlu=1), ['norm_cfg.tlu must be']),
    (lambda: nn.Conv2d(3, 8, 3), 'FRN', ['no norm over a map']),
    (lambda: nn.Sequential(conv(3, 8), Twice(8)), 'FRN', [
        'no norm could become FRN', '1: Twice does more than normalise']),
    (lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)), 'FRN', [
        'does not run on the example inputs', 'RuntimeError', '4 channels']),
    (lambda: nn.Sequential(conv(3, 8), FRN(8, tlu=True)), 'BN', [
        '1: FRN has a TLU already']),
    (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv(3, 8)),
                           nn.BatchNorm2d(8)),
     dict(type='GN', num_groups=4, ws=True), ['cannot be standardized'])])
def test_what_is_refused_leaves_the_model_as_it_was(make, norm, words):
    model = trained(make())
    seen = []
    handle = model.register_forward_hook(lambda *args: seen.append(1))
    modules = [(path, id(module)) for path, module in model.named_modules()]
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError) as error:
        switch_norms(model, norm, X)
    for word in words:
        assert word in str(error.value)
    assert 'model.norm_cfg' not in str(error.value)
    if 'parts' not in norm:
        assert 'parts' not in str(error.value)
    assert [(path, id(module))
            for path, module in model.named_modules()] == modules
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    handle.remove()
    assert not model._forward_hooks


def of_volumes():
    return trained(nn.Sequential(
        nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU())).double()


VOLUMES = X[:, :, None].repeat(1, 1, 4, 1, 1).double()


def test_volumes_are_maps_too():
    model = of_volumes()
    expected = model(VOLUMES)
    new = switch_norms(model, BN_ITSELF, VOLUMES)
    assert type(new[1]) is FRN and new[1].tau is not None
    torch.testing.assert_close(new(VOLUMES), expected)


@pytest.mark.parametrize('norm', ['BN', 'IN'])
def test_a_norm_of_images_is_none_of_volumes(norm):
    """PyTorch has other classes for those, and these fail at the next call."""
    with pytest.raises(ConfigError, match=f'no norm could become {norm}; 1: '
                       f'its maps have 3 dimensions, and {norm} is of'):
        switch_norms(of_volumes(), norm, VOLUMES)


@pytest.mark.parametrize('make', [lambda: simple(nn.ReLU6()), Functional,
                                  Branches, InTrainingOnly, WithTargets])
def test_without_tlus_it_is_switched_all_the_same(make):
    model = trained(make())
    expected = model(X)
    switch_norms(model, dict(tlu=False, **BN_ITSELF), X)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)


def test_an_error_of_ours_undoes_it_too(monkeypatch):
    """Whatever fails behind the point where modules are replaced."""
    from frn_mmdet.switch import apply

    def fail(*args):
        raise RuntimeError('no')

    monkeypatch.setattr(apply, 'sites_of', fail)
    model = trained(NETWORKS['residual']())
    expected, keys = model(X), list(model.state_dict())
    with pytest.raises(RuntimeError, match='no'):
        switch_norms(model, 'FRN', X)
    assert list(model.state_dict()) == keys
    assert torch.equal(model(X), expected)


def test_inputs_modes_and_random_numbers_are_left_alone():
    class Takes(nn.Module):

        def __init__(self):
            super().__init__()
            self.net = UNet()

        def forward(self, images, scale):
            images[0].mul_(scale['by'])
            return self.net(images[0])['out']

    model = Takes().train()
    model.net.down[0][1].eval().requires_grad_(False)
    x, scale = X.clone(), dict(by=2)
    random = torch.get_rng_state()
    switch_norms(model, 'FRN', [x], scale)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, X)
    norm = model.net.down[0][1]
    assert not norm.training
    assert {p.requires_grad for p in norm.parameters()} == {False}
    assert model.training
    assert model.net.down[0][4].tau.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_a_norm_itself_is_replaced():
    """As nn.SyncBatchNorm.convert_sync_batchnorm gives another one."""
    bn = trained(nn.BatchNorm2d(3))
    norm = switch_norms(bn, BN_ITSELF, X)
    assert type(norm) is FRN
    torch.testing.assert_close(norm(X), bn(X))


def test_the_norms_type_is_that_of_the_network():
    model = switch_norms(trained(NETWORKS['residual']()).bfloat16(), 'FRN',
                         X.bfloat16())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(X.bfloat16()).dtype is torch.bfloat16


def test_a_norm_that_two_blocks_share_is_one_still():
    norm = nn.BatchNorm2d(8)
    model = trained(nn.Sequential(conv(3, 8), norm, conv(8, 8), norm))
    switch_norms(model, 'FRN', X)
    assert type(model[1]) is FRN
    assert model[1] is model[3]

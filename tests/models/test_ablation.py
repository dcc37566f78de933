"""Every row of the paper's ablation table is one value of norm_cfg."""

import pytest
import torch

NORMS = ('BN', 'GN', 'LN', 'IN', 'BRN', 'GFRN', 'LFRN', 'FRN')
GROUPS = dict(num_groups=4)  # the narrow layers here have 8 channels and up


@pytest.mark.parametrize('norm, tlu, name', [
    *((norm, True, 'RetinaNet') for norm in NORMS),
    *((norm, i % 2 == 0, 'MaskRCNN') for i, norm in enumerate(NORMS))])
def test_two_steps(small, losses, norm, tlu, name):
    """Weights as built, so that no zero gamma stops a block's gradients."""
    groups = GROUPS if norm in ('GN', 'GFRN') else {}
    # Anchors of a quarter of the size: some are positive on every level, of
    # which a batch norm's head has norms of its own.
    options = {'bbox_head.anchor_generator.octave_base_scale': 1
               } if name == 'RetinaNet' else {}
    model = small(name, dict(type=norm, tlu=tlu, **groups), options)
    taus = {n: p for n, p in model.named_parameters() if n.endswith('.tau')}
    assert bool(taus) is tlu
    for tau in taus.values():  # a ReLU behind it would stop its gradient
        torch.nn.init.constant_(tau, -.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        loss = losses(
            model,
            size=256 if name == 'RetinaNet' else 128,
            items=8,
            with_mask=name == 'MaskRCNN')
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [n for n, t in taus.items() if t.grad.abs().sum() == 0] == []

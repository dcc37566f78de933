"""Detectors built the way mmdet builds them: from a config, by registry."""

import copy
import functools
import gc
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from scripts import load, path_of

# One thread for each of pytest's workers: two that spin on the same core slow
# each other tenfold.
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ['OMP_NUM_THREADS'] = '1'
    torch.set_num_threads(1)
# Read by Triton when it is imported, by whomever: without a GPU its kernels
# run on its interpreter.
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'

import mmengine.config.utils  # noqa: E402
import mmengine.dataset.base_dataset  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402

STOCK = dict(
    RetinaNet='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    FasterRCNN='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    FCOS='mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    MaskRCNN='mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    CascadeRCNN='mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    PanopticFPN='mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py')
_cache = {}
_built = {}
# What mmengine does each time and takes tenths of a second here: it reads all
# of mmdet's metafiles for a config that is named mmdet::, and collects the
# garbage of the whole process for a data set.
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)
mmengine.dataset.base_dataset.gc = SimpleNamespace(collect=lambda: None)


def pytest_collection_finish():
    """What is imported is no garbage, and need not be looked at again."""
    gc.collect()
    gc.freeze()


def stock_config(name):
    """A fresh copy of mmdet's own COCO config of a detector."""
    path = STOCK.get(name, name)
    if path not in _cache:
        _cache[path] = Config.fromfile(_write(path))
    return copy.deepcopy(_cache[path])


def _write(path):
    """A config file that has one of mmdet's as its base, as users write."""
    import tempfile
    with tempfile.NamedTemporaryFile(
            'w', suffix='.py', delete=False) as file:
        file.write(f"_base_ = '{path}'\n")
    return file.name


@pytest.fixture(autouse=True)
def talkative():
    """A tool that was called in this process may have silenced the log."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def stock():
    """stock(name) is mmdet's config of RetinaNet, MaskRCNN, ..."""
    return stock_config


@pytest.fixture
def build():
    """build(name, norm_cfg, **options): a detector with its norms switched.

    ``options`` override keys of the model, such as
    ``{'backbone.depth': 18}``.
    """
    from mmdet.registry import MODELS
    init_default_scope('mmdet')

    def _build(name, norm_cfg='FRN', options=None, seed=0):
        cfg = stock_config(name)
        cfg.model.type = f'frn_mmdet.{cfg.model.type}'
        cfg.model.norm_cfg = norm_cfg
        for key, value in (options or {}).items():
            cfg.merge_from_dict({f'model.{key}': value})
        torch.manual_seed(seed)
        return MODELS.build(cfg.model)

    return _build


# A ResNet-18 as narrow as it gets: seconds become fractions of one.
SMALL = {
    'backbone.depth': 18,
    'backbone.base_channels': 8,
    'backbone.init_cfg': None,
    'neck.in_channels': [8, 16, 32, 64],
    'neck.out_channels': 16,
}
SMALL_HEAD = dict(
    FCOS={
        'bbox_head.in_channels': 16,
        'bbox_head.feat_channels': 32,  # it has GN of 32 groups
        'bbox_head.stacked_convs': 2,
    },
    RetinaNet={
        'bbox_head.in_channels': 16,
        'bbox_head.feat_channels': 16,
        'bbox_head.stacked_convs': 2,
    },
    MaskRCNN={
        'rpn_head.in_channels': 16,
        'rpn_head.feat_channels': 16,
        'roi_head.bbox_roi_extractor.out_channels': 16,
        'roi_head.mask_roi_extractor.out_channels': 16,
        'roi_head.bbox_head.type': 'Shared4Conv1FCBBoxHead',
        'roi_head.bbox_head.in_channels': 16,
        'roi_head.bbox_head.conv_out_channels': 16,
        'roi_head.bbox_head.fc_out_channels': 32,
        'roi_head.mask_head.in_channels': 16,
        'roi_head.mask_head.conv_out_channels': 16,
    })
SMALL_HEAD['PanopticFPN'] = SMALL_HEAD['MaskRCNN'] | {
    'semantic_head.in_channels': 16,
    'semantic_head.inner_channels': 16,
    'train_cfg.rpn_proposal.max_per_img': 20,
    'test_cfg.rpn.max_per_img': 20,
}


@pytest.fixture
def small(build):
    """small(name, norm_cfg): a detector of narrow layers, see SMALL_HEAD.

    Built once, then copied, random numbers going on as if it were built;
    with ``anew=True`` it is, and so the log tells of it.
    """

    def _small(name, norm_cfg='FRN', options=None, seed=0, anew=False):
        key = repr((name, norm_cfg, options, seed))
        if anew or key not in _built:
            model = build(name, norm_cfg,
                          SMALL | SMALL_HEAD[name] | (options or {}), seed)
            _built[key] = model, torch.get_rng_state()
        model, state = _built[key]
        torch.set_rng_state(state)
        return copy.deepcopy(model)

    return _small


@pytest.fixture
def losses():
    """losses(model, ...): the sum of a training step's losses."""
    from mmdet.testing import demo_mm_inputs

    def _losses(model, batch=2, size=128, items=4, with_mask=False):
        data = demo_mm_inputs(
            batch, [(3, size, size)] * batch,
            num_items=[items] * batch if isinstance(items, int) else items,
            num_classes=10,
            with_mask=with_mask)
        data = model.data_preprocessor(data, True)
        return model.parse_losses(model.forward(**data, mode='loss'))[0]

    return _losses


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A data set of 16 + 4 images."""
    out = tmp_path_factory.mktemp('data') / 'shapes'
    load('make_shapes').main([str(out), '--train', '16', '--val', '4'])
    return out


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub: the folder in which it keeps weights."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    folder = tmp_path / 'torch/hub/checkpoints'
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def environment(shapes):
    """Of a subprocess: one thread, and the data set's folder."""
    return os.environ | dict(
        SHAPES_ROOT=str(shapes),
        COCO_ROOT=str(shapes),
        OMP_NUM_THREADS='1',
        PYTHON=sys.executable)


@pytest.fixture
def tool(environment, tmp_path):
    """tool(name, *args): run a script, check its exit, give its output."""

    def _tool(name, *args, ok=True, timeout=400):
        command = [sys.executable] if name.endswith('.py') else []
        run = subprocess.run(
            [*command, str(path_of(name)), *map(str, args)],
            env=environment,
            cwd=tmp_path,  # some tools of mmdet write to where they run
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout)
        assert (run.returncode == 0) is ok, run.stdout
        return run.stdout

    return _tool

"""The plugin's nodes in mmengine's registry tree.

A type written ``frn_mmdet.Name`` makes mmengine import this module by
itself, so configs need no ``custom_imports``.
"""

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import PARAM_SCHEDULERS as ROOT_SCHEDULERS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=ROOT_MODELS,
    scope='frn_mmdet',
    locations=['frn_mmdet.layers', 'frn_mmdet.models'])
PARAM_SCHEDULERS = Registry(
    'parameter scheduler',
    parent=ROOT_SCHEDULERS,
    scope='frn_mmdet',
    locations=['frn_mmdet.engine.cosine'])

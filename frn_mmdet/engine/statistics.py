"""Statistics of the user's own images, in place of those of the pretraining.

As PreciseBN (Wu and Johnson, *Rethinking "Batch" in BatchNorm*, 2021,
section 3) takes them: anew, with weights that stay, over many images.
"""

import copy
from itertools import islice

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from .check_data import check_coco_data

BATCH = 16  # images; a BN's variance is the mean of those of the batches


@torch.no_grad()
def take_statistics(model: nn.Module, cfg: Config, count: int) -> int:
    """Let the BNs of a detector have the statistics of its training images.

    Of backbone and neck, which see whole images. Each is normalised by the
    statistics of its batch meanwhile, as in training.

    Args:
        model (nn.Module): The detector, on any device. Its BNs change.
        cfg (Config): Has the images, as ``train_dataloader``.
        count (int): Images at most.

    Returns:
        int: Images seen.

    Raises:
        ConfigError: If the images are not there, or too few for a batch.
    """
    check_coco_data(cfg, ('train', ))
    loader = Runner.build_dataloader(
        cfg.train_dataloader | dict(
            batch_size=BATCH, num_workers=0, persistent_workers=False), seed=0)
    batches = min(len(loader.dataset), count) // BATCH
    if not batches:
        raise ConfigError(
            f'train_dataloader: statistics are taken over {BATCH} images at a '
            f'time; it has {len(loader.dataset)}, and {count} were asked for')
    kept = {norm: copy.deepcopy(norm.state_dict()) for norm in model.modules()
            if isinstance(norm, _BatchNorm)}
    model.eval()
    for norm in kept:
        norm.train()
        norm.momentum = None  # the mean over all batches
        norm.reset_running_stats()
    # The last batch may be smaller; that one would count as much as another.
    whole = (data for data in loader if len(data['inputs']) == BATCH)
    for data in islice(whole, batches):
        model.extract_feat(model.data_preprocessor(data, True)['inputs'])
    for norm, state in kept.items():
        if not norm.num_batches_tracked:  # a head's
            norm.load_state_dict(state)
    model.eval()
    return batches * BATCH

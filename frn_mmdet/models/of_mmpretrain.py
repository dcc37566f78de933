"""mmpretrain's classifier with ``norm_cfg``, and what InceptionV3 lacks."""

import mmpretrain.models
from torch import Tensor

from .norm_switch import NormSwitch


class ImageClassifier(NormSwitch, mmpretrain.models.ImageClassifier):
    """mmpretrain's ImageClassifier; see :class:`NormSwitch`."""

    types_of = 'mmpretrain'


class AuxClsHead(mmpretrain.models.ClsHead):
    """The losses of a backbone that classifies twice, as InceptionV3 does.

    mmpretrain's InceptionV3 computes the scores of its auxiliary head
    (``aux_logits=True``), but no head of mmpretrain's takes them: without a
    loss its weights would never learn.

    Args:
        aux_weight (float): Weight of the auxiliary loss. Defaults to 0.4,
            as in TensorFlow's models (slim).
        **kwargs: Of mmpretrain's ClsHead.
    """

    def __init__(self, aux_weight: float = 0.4, **kwargs) -> None:
        super().__init__(**kwargs)
        self.aux_weight = aux_weight

    def loss(self, feats: tuple[Tensor, Tensor], data_samples: list,
             **kwargs) -> dict:
        """Compute both losses.

        Args:
            feats (tuple[Tensor]): Scores of the auxiliary head and of the
                network, each (N, classes).
            data_samples (list[DataSample]): The labels.
            **kwargs: Of the loss.
        """
        losses = super().loss(feats, data_samples, **kwargs)
        aux = self._get_loss(feats[0], data_samples, **kwargs)['loss']
        return losses | dict(loss_aux=self.aux_weight * aux)

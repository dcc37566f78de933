"""Non-maximum suppression as tensor operators, for an ahead-of-time graph."""

import torch
from torch import Tensor
from torch._higher_order_ops import while_loop

from .nms import NONE
from .retinanet import pick


def greedy_nms(boxes: Tensor, scores: Tensor, iou_threshold: float,
               limit: int) -> Tensor:
    """As :func:`.nms.nms_scores`, without any operator but PyTorch's own.

    Round by round each image's best box stays, and those that overlap with
    it go: at most ``limit`` rounds, each linear in K, for all images at once.
    """
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)

    def goes_on(rounds, left, stay):
        return (rounds < limit) & (left >= 0).any()

    def one_round(rounds, left, stay):
        score, best = left.max(1, keepdim=True)
        box = pick(boxes, best)
        overlap = (torch.minimum(boxes[..., 2:], box[..., 2:])
                   - torch.maximum(boxes[..., :2], box[..., :2]))
        overlap = overlap.clamp(min=0).prod(-1)
        iou = overlap / (area + area.gather(1, best) - overlap)
        # An image with none left has the score -1, which changes nothing.
        stay = stay.scatter(
            1, best, torch.maximum(score, stay.gather(1, best)))
        left = torch.where(iou > iou_threshold, NONE, left)
        # Itself by its place: a box without an area overlaps with none.
        return rounds + 1, left.scatter(1, best, NONE), stay

    return while_loop(
        goes_on, one_round,
        (torch.zeros((), dtype=torch.int64, device=scores.device),
         scores.clone(), torch.full_like(scores, NONE)))[2]

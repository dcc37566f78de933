"""Non-maximum suppression as one operator, of PyTorch and of ONNX."""

import torch
from mmcv.ops import nms
from torch import Tensor

NONE = -1.  # stands for the score of a box that is none


@torch.library.custom_op('frn_mmdet::nms_scores', mutates_args=())
def nms_scores(boxes: Tensor, scores: Tensor, iou_threshold: float,
               limit: int) -> Tensor:
    """The scores of the boxes that stay; -1 for the others.

    A mask over the input, and no list of indices: its shape is known before
    it runs, which ``torch.export`` wants.

    Args:
        boxes (Tensor): Shape (N, K, 4), as (x1, y1, x2, y2) in pixels.
            Those of an image compete with each other, whatever their class.
        scores (Tensor): Shape (N, K); below 0 for a box that is none.
        iou_threshold (float): A box goes if it overlaps more than this with
            a better one.
        limit (int): The best that stay at most, in each image.

    Returns:
        Tensor: Shape (N, K).
    """
    stay = torch.full_like(scores, NONE)
    for row, box, score in zip(stay, boxes, scores, strict=True):
        some = (score >= 0).nonzero().flatten()
        keep = some[nms(box[some], score[some], iou_threshold)[1][:limit]]
        row[keep] = score[keep]
    return stay


@nms_scores.register_fake
def _(boxes, scores, iou_threshold, limit):
    return torch.empty_like(scores)


def translations() -> dict:
    """What ``torch.onnx.export`` is to write for the operator."""
    from onnxscript import opset18 as op  # here: a package of its own

    def to_onnx(boxes, scores, iou_threshold: float, limit: int):
        # Rows of (image, class, box); the corners may come in any order.
        picked = op.NonMaxSuppression(
            boxes, op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[NONE / 2]))
        index = op.Gather(picked, op.Constant(value_ints=[0, 2]), axis=1)
        none = op.Expand(op.Constant(value_float=NONE), op.Shape(scores))
        return op.ScatterND(none, index, op.GatherND(scores, index))

    return {torch.ops.frn_mmdet.nms_scores.default: to_onnx}

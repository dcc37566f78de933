"""NMS in plain tensor operators keeps what mmcv's NMS keeps."""

import pytest
import torch

from frn_mmdet.export.greedy import greedy_nms
from frn_mmdet.export.nms import nms_scores


@pytest.mark.parametrize('limit', [9, 100])
def test_it_keeps_what_mmcv_does(limit):
    random = torch.Generator().manual_seed(0)
    corners = 80 * torch.rand(3, 200, 2, generator=random)
    sizes = 40 * torch.rand(3, 200, 2, generator=random)
    sizes[:, :20] = 0  # without an area, they overlap with none
    boxes = torch.cat([corners, corners + sizes], -1)
    scores = torch.rand(3, 200, generator=random)
    scores[scores < 0.4] = -1  # none
    scores[1, 5:] = -1  # an image that is done long before the others
    scores[2] = -1
    kept = nms_scores(boxes, scores, 0.3, limit)
    assert greedy_nms(boxes, scores, 0.3, limit).equal(kept)

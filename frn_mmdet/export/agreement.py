"""Whether a runtime finds what PyTorch finds."""

from dataclasses import dataclass

import numpy as np

SCORE = 1e-3
BOX = 0.1  # pixels


@dataclass
class Agreement:
    """How the detections of some images compare.

    Attributes:
        images (int): Compared.
        detections (int): That PyTorch found.
        unmatched (int): Of either side, with none of the same label within
            the tolerances on the other side. Those whose score is within
            the tolerance of the lowest that is kept do not count: which of
            them are kept, rounding decides.
        score (float): The largest difference of a matched pair's scores.
        box (float): The largest difference of a coordinate, in pixels.
    """

    images: int = 0
    detections: int = 0
    unmatched: int = 0
    score: float = 0.
    box: float = 0.

    def add(self, wanted, got, lowest: float) -> None:
        """Compare an image.

        Args:
            wanted (tuple[np.ndarray]): Of PyTorch: boxes and scores, shape
                (K, 5), and labels, shape (K, ).
            got (tuple[np.ndarray]): Of the runtime, likewise.
            lowest (float): The score below which nothing is kept.
        """
        dets, labels = wanted
        others, other_labels = got
        self.images += 1
        self.detections += len(dets)
        free = np.ones(len(others), bool)
        lonely = []
        for det, label in zip(dets, labels, strict=True):
            difference = np.abs(others - det)
            scores = difference[:, 4]
            boxes = difference[:, :4].max(1, initial=0)
            fits = np.flatnonzero(
                free & (other_labels == label) & (scores <= SCORE)
                & (boxes <= BOX))
            if not len(fits):
                lonely.append(det[4])
                continue
            best = fits[np.argmin(boxes[fits] / BOX + scores[fits] / SCORE)]
            free[best] = False
            self.score = max(self.score, float(scores[best]))
            self.box = max(self.box, float(boxes[best]))
        lonely += list(others[free, 4])
        self.unmatched += sum(score > lowest + SCORE for score in lonely)


def lowest_kept(scores: np.ndarray, score_thr: float, limit: int) -> float:
    """The score below which an image's detections are not kept.

    Args:
        scores (np.ndarray): That were kept, shape (K, ).
        score_thr (float): The config's.
        limit (int): The config's ``max_per_img``.

    Returns:
        float: The worst kept score where the limit cut, else ``score_thr``.
    """
    return float(scores.min()) if len(scores) >= limit else score_thr

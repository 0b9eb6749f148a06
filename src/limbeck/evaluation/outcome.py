"""The outcome of one network on a test part: accuracy, confusion of classes, calibration, and what two classes add."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.core.events import Listener
from limbeck.core.records import TWO_CLASS_MEASURES
from limbeck.training.plain import Network, predict_logits, score_classes

BINS = 15  # of Guo et al.
MAX_CONFUSION = 100  # classes of which a row has a confusion matrix


class Outcome(NamedTuple):
    """What one network reaches.

    accuracy, balanced: The fraction of images that are classified correctly, and its mean over classes.
    confusion:          int64 (classes, classes), images by class and by predicted class; 0 for parameters that are not
                        finite, for which accuracies are 0 too.
    calibration_error:  The expected calibration error, see `calibration_error`; NaN for such parameters.
    auc:                Of two classes, the area under the ROC curve of the second; NaN where there is none.
    """

    accuracy: float
    balanced: float
    confusion: Tensor
    calibration_error: float
    auc: float = nan

    def to_json(self) -> list[Any]:
        """The fields as JSON holds them; `from_json` gives the same outcome to the last bit."""
        return [self.accuracy, self.balanced, self.confusion.tolist(), self.calibration_error, self.auc]

    @classmethod
    def from_json(cls, fields: list[Any]) -> Outcome:
        """The outcome of `to_json`."""
        accuracy, balanced, confusion, *others = fields
        return cls(accuracy, balanced, torch.tensor(confusion), *others)

    @property
    def has_diverged(self) -> bool:
        """Whether the parameters, or what the network says with them, were not finite."""
        return not bool(self.confusion.any())

    @property
    def sensitivity(self) -> float:
        """Of two classes: the share of the images of the second one that are classified as it."""
        return self._recall(1)

    @property
    def specificity(self) -> float:
        """Of two classes: the share of the images of the first one that are classified as it."""
        return self._recall(0)

    def _recall(self, label: int) -> float:
        """NaN without images of the class, and for parameters that are not finite."""
        counts = self.confusion[label]
        return float(counts[label] / counts.sum())


@torch.no_grad()
def measure(network: Network, theta: Tensor, images: Tensor, labels: Tensor, classes: int) -> Outcome:
    """The outcome of a network at theta (P,) on images (n, c, h, w) without augmentation and their classes (n,)."""
    if not bool(torch.isfinite(theta).all()):
        return Outcome(0.0, 0.0, torch.zeros(classes, classes, dtype=torch.int64), nan)
    logits, labels = predict_logits(network, theta, images).cpu(), labels.cpu()  # once, as the rest waits otherwise
    if not bool(torch.isfinite(logits).all()):  # of parameters that are finite and huge
        return Outcome(0.0, 0.0, torch.zeros(classes, classes, dtype=torch.int64), nan)
    predictions = logits.argmax(1)
    counts = confusion_matrix(labels, predictions, classes)
    auc = area_under_curve(logits, labels) if classes == 2 else nan
    return Outcome(*score_classes(predictions, labels), counts, calibration_error(logits, labels), auc)


def warn_of_divergence(outcomes: Sequence[Outcome], images: str, lr: float, listen: Listener) -> None:
    """Send a warning where networks diverged, since the mean counts them with an accuracy of 0.

    images: on which they were trained, in words; lr: their step size.
    """
    count = sum(outcome.has_diverged for outcome in outcomes)
    if count:
        text = (
            f"{count} of {len(outcomes)} networks trained on {images} diverged at the step size {lr:.3g}, and count "
            "with an accuracy of 0, and in sensitivity, AUC and calibration not at all; a smaller step size or fewer "
            "epochs (--eval.epochs) would keep them finite."
        )
        listen({"event": "warning", "text": text})


def area_under_curve(logits: Tensor, labels: Tensor) -> float:
    """The area under the ROC curve of the second of two classes, by scikit-learn; NaN where one has no images.

    >>> area_under_curve(torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, 3.0]]), torch.tensor([0, 1, 1]))
    1.0
    """
    margin = logits[:, 1] - logits[:, 0]
    if len(labels.unique()) < 2 or not bool(torch.isfinite(margin).all()):
        return nan
    from sklearn.metrics import roc_auc_score  # takes a second to import

    return float(roc_auc_score(labels.numpy(), margin.numpy()))


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """int64 (classes, classes): how many images of each class (row) are predicted as each class (column).

    >>> confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """The expected calibration error (Guo et al. 2017, equation 3) of logits (n, classes).

    The mean over images of the distance, within bins of equal width of the largest probability, between the mean of
    this probability and the accuracy.

    >>> calibration_error(torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1])) > 0.49
    True
    """
    confidence, predictions = logits.double().softmax(1).max(1)
    is_correct = (predictions == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    index = torch.bucketize(confidence, edges)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, confidence - is_correct)
    return float(gaps.abs().sum() / len(labels))


def describe_two_classes(outcomes: Sequence[Outcome], classes: Sequence[str]) -> dict[str, Any]:
    """Sensitivity, specificity and AUC of several networks: fields of a row; none where there are not two classes."""
    if len(classes) != 2 or not outcomes:
        return {}
    fields: dict[str, Any] = {"positive": classes[1]}
    for name in TWO_CLASS_MEASURES:
        values = [value for outcome in outcomes if isfinite(value := getattr(outcome, name))]
        fields[f"{name}_mean"] = fmean(values) if values else None
        fields[f"{name}_std"] = stdev(values) if len(values) > 1 else None
    return fields


def describe_classes(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Accuracy and confusion of classes, of several networks together: fields of a row."""
    confusion = torch.stack([outcome.confusion for outcome in outcomes]).sum(0)
    counts = confusion.sum(1)
    accuracy = (confusion.diagonal() / counts).tolist()
    classes = {"class_accuracy": [value if count else None for value, count in zip(accuracy, counts.tolist())]}
    return classes | ({"confusion": confusion.tolist()} if len(confusion) <= MAX_CONFUSION else {})


def describe_outcomes(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Confusion of classes and calibration, of several networks together: fields of a row."""
    errors = [outcome.calibration_error for outcome in outcomes if isfinite(outcome.calibration_error)]
    return describe_classes(outcomes) | {
        "calibration_error_mean": fmean(errors) if errors else None,
        "calibration_error_std": stdev(errors) if len(errors) > 1 else None,
    }

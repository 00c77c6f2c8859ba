"""Predictive uncertainty of a family of classifiers (paper, section 5.1).

Every gamma of a Bayesian hypernetwork is a classifier, a member of the family. The family predicts
the mean of its members' predictions, the Bayesian model average. Its confidence and the agreement
of its members tell which answers to trust. All entropies are in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Assessment",
    "Predictive",
    "Reliability",
    "assess",
    "auroc",
    "rejection",
    "reliability",
]


def _entropy(log_probabilities: Tensor) -> Tensor:
    parts: Tensor = torch.special.entr(log_probabilities.exp())
    return parts.sum(dim=-1)


@dataclass(frozen=True)
class Predictive:
    """Predictive distribution of a family over K classes, on N images.

    Tensors are float64 on the CPU, because differences of entropies are small. ``+`` pools two
    families, so members can run one after another.

    Attributes:
        log_probabilities: ``(N, K)``, logarithm of the members' mean probabilities.
        member_entropy: ``(N,)``, mean of the members' entropies.
        votes: ``(N, K)``, number of members that answer with each class.
        members: number of members.

    >>> from hyperlight.lab.uncertainty import Predictive
    >>> one, other = (Predictive.of(torch.tensor([[a, -a]])) for a in (9.0, -9.0))
    >>> both = one + other  # both are certain, and disagree
    >>> both.probabilities, both.entropy.round(decimals=3)
    (tensor([[0.5000, 0.5000]], dtype=torch.float64), tensor([0.6930], dtype=torch.float64))
    >>> both.mutual_information.round(decimals=3), both.disagreement
    (tensor([0.6930], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """

    log_probabilities: Tensor
    member_entropy: Tensor
    votes: Tensor
    members: int

    @classmethod
    def of(cls, logits: Tensor) -> Predictive:
        """Make the distribution of one member from its logits ``(N, K)``."""
        log_probabilities = logits.cpu().double().log_softmax(dim=-1)
        votes = F.one_hot(log_probabilities.argmax(dim=-1), logits.shape[-1])
        return cls(log_probabilities, _entropy(log_probabilities), votes, 1)

    def __add__(self, other: Predictive) -> Predictive:
        members = self.members + other.members
        a, b = self.members / members, other.members / members
        return Predictive(
            torch.logaddexp(
                self.log_probabilities + math.log(a), other.log_probabilities + math.log(b)
            ),
            a * self.member_entropy + b * other.member_entropy,
            self.votes + other.votes,
            members,
        )

    @property
    def probabilities(self) -> Tensor:
        """Probabilities of the classes, ``(N, K)``."""
        return self.log_probabilities.exp()

    @property
    def answer(self) -> Tensor:
        """Most probable class, ``(N,)``."""
        return self.log_probabilities.argmax(dim=-1)

    @property
    def confidence(self) -> Tensor:
        """Probability of the answer, ``(N,)``."""
        return self.log_probabilities.amax(dim=-1).exp()

    @property
    def entropy(self) -> Tensor:
        """Total uncertainty of an answer, ``(N,)``, from 0 to log K."""
        return _entropy(self.log_probabilities)

    @property
    def mutual_information(self) -> Tensor:
        """Uncertainty due to disagreement of the members, ``(N,)``, from 0 to log K.

        The mutual information of class and member: the entropy of the mean minus the mean of the
        entropies (BALD, Houlsby et al. 2011).
        """
        return (self.entropy - self.member_entropy).clamp_min(0.0)

    @property
    def disagreement(self) -> Tensor:
        """Fraction of pairs of members with different answers, ``(N,)``; 0 with one member."""
        pairs = self.members * (self.members - 1)
        same = (self.votes * (self.votes - 1)).sum(dim=-1)
        return 1.0 - same.double() / pairs if pairs else torch.zeros(len(same), dtype=torch.double)


@dataclass(frozen=True)
class Reliability:
    """Answers in bins by their confidence (DeGroot and Fienberg 1983).

    Attributes:
        count: ``(bins,)``, number of answers; the bins divide [0, 1] evenly.
        confidence: ``(bins,)``, mean confidence; NaN in an empty bin.
        accuracy: ``(bins,)``, fraction of right answers; NaN in an empty bin.
    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error, from 0 to 1 (Naeini et al. 2015).

        The mean over answers of the distance between confidence and accuracy of their bin.
        """
        gaps = (self.accuracy - self.confidence).abs() * self.count
        return float(gaps[self.count > 0].sum() / self.count.sum())


def reliability(confidence: Tensor, right: Tensor, bins: int = 15) -> Reliability:
    """Bin answers by their confidence.

    A bin includes its lower end, and the last bin also its upper end. torchmetrics has the same
    calibration error, except that it gives a confidence of 1, which is common in float32, its own
    bin.

    Args:
        confidence: ``(N,)``, from 0 to 1.
        right: ``(N,)``, bool.
        bins: number of bins.
    """
    ends = torch.linspace(0.0, 1.0, bins + 1, dtype=confidence.dtype)
    index = (torch.bucketize(confidence, ends, right=True) - 1).clamp(0, bins - 1)
    count = torch.bincount(index, minlength=bins)
    sums = [torch.bincount(index, values.double(), bins) for values in (confidence, right)]
    return Reliability(count, sums[0] / count, sums[1] / count)


def rejection(uncertainty: Tensor, right: Tensor) -> Tensor:
    """Accuracy of the remaining answers when the most uncertain ones are rejected.

    Ties are averaged over all ways to break them.

    Args:
        uncertainty: ``(N,)``, uncertainty of every answer.
        right: ``(N,)``, bool.

    Returns:
        ``(N,)``, from 0 to 1: the accuracy with 0, 1, ..., N - 1 answers rejected.

    >>> from hyperlight.lab.uncertainty import rejection
    >>> rejection(torch.tensor([0.1, 0.9, 0.2, 0.3]), torch.tensor([True, False, True, False]))
    tensor([0.5000, 0.6667, 1.0000, 1.0000], dtype=torch.float64)
    """
    order = uncertainty.argsort()
    certain_first = uncertainty[order]
    group = torch.zeros_like(order)  # equally uncertain answers are one group
    group[1:] = (certain_first[1:] != certain_first[:-1]).cumsum(dim=0)
    mean = torch.bincount(group, right[order].double()) / torch.bincount(group)
    number = torch.arange(1, len(order) + 1, dtype=torch.float64)
    accuracy: Tensor = mean[group].cumsum(dim=0) / number
    return accuracy.flip(0)


def auroc(score: Tensor, positive: Tensor) -> float:
    """Probability that a positive has a higher score than a negative; ties count half.

    Args:
        score: ``(N,)``; the result is NaN if one is NaN.
        positive: ``(N,)``, bool.

    Returns:
        From 0 to 1; 0.5 for a useless score. NaN unless there are both positives and negatives.
    """
    from sklearn.metrics import roc_auc_score

    if bool(positive.all()) or not bool(positive.any()) or bool(score.isnan().any()):
        return math.nan
    return float(roc_auc_score(positive.numpy(), score.numpy()))


@dataclass(frozen=True)
class Assessment:
    """Quality of a predictive distribution on N labelled images.

    Attributes:
        right: ``(N,)``, bool.
        confidence: ``(N,)``, confidence of the answers.
        accuracy: accuracy, from 0 to 1.
        nll: mean negative log-likelihood of the truth, in nats.
        brier: mean squared distance to the one-hot truth, summed over classes (Brier 1950), from 0
            to 2.
        ece: expected calibration error, from 0 to 1.
        auroc: AUROC of the entropy as a detector of wrong answers; NaN if all or none are right.
        rejection: ``(N,)``, result of :func:`rejection` by the entropy.
    """

    right: Tensor
    confidence: Tensor
    accuracy: float
    nll: float
    brier: float
    ece: float
    auroc: float
    rejection: Tensor

    def kept(self, fraction: float) -> float:
        """Accuracy of the rest if this fraction of the answers, the least certain, is rejected."""
        last = len(self.rejection) - 1
        return float(self.rejection[min(round(fraction * len(self.rejection)), last)])


def assess(predictive: Predictive, labels: Tensor) -> Assessment:
    """Assess a predictive distribution on the true classes ``(N,)``."""
    right = predictive.answer == labels
    truth = F.one_hot(labels, predictive.log_probabilities.shape[-1])
    return Assessment(
        right,
        predictive.confidence,
        accuracy=float(right.double().mean()),
        nll=float(F.nll_loss(predictive.log_probabilities, labels)),
        brier=float((predictive.probabilities - truth).square().sum(dim=-1).mean()),
        ece=reliability(predictive.confidence, right).error,
        auroc=auroc(predictive.entropy, ~right),
        rejection=rejection(predictive.entropy, right),
    )

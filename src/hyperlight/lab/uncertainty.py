"""What a family of classifiers knows about its own answers (paper, section 5.1).

Every gamma of a Bayesian hypernetwork is a classifier. The prediction of the family is the mean of
theirs, the Bayesian model average; how sure it is, and how far its members agree, says which
answers to trust. All entropies are in nats.
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
    """The predictive distribution over K classes of a family's members, on N images.

    Kept in float64 on the CPU: differences of entropies are small. Two of them are pooled
    by ``+``, so that the members can be run one after another.

    Attributes:
        log_probabilities: ``(N, K)``, of the mean of the members' probabilities.
        member_entropy: ``(N,)``, the mean of the members' entropies.
        votes: ``(N, K)``, the number of members that answer with a class.
        members: how many there are.

    >>> from hyperlight.lab.uncertainty import Predictive
    >>> one, other = (Predictive.of(torch.tensor([[a, -a]])) for a in (9.0, -9.0))
    >>> both = one + other  # each is sure of its answer, and they do not agree
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
        """That of one member, from its logits ``(N, K)``."""
        log_probabilities = logits.cpu().double().log_softmax(dim=-1)
        votes = F.one_hot(log_probabilities.argmax(dim=-1), logits.shape[-1])
        return cls(log_probabilities, _entropy(log_probabilities), votes, 1)

    def __add__(self, other: Predictive) -> Predictive:
        members = self.members + other.members
        share, rest = self.members / members, other.members / members
        return Predictive(
            torch.logaddexp(
                self.log_probabilities + math.log(share), other.log_probabilities + math.log(rest)
            ),
            share * self.member_entropy + rest * other.member_entropy,
            self.votes + other.votes,
            members,
        )

    @property
    def probabilities(self) -> Tensor:
        """``(N, K)``."""
        return self.log_probabilities.exp()

    @property
    def answer(self) -> Tensor:
        """The most probable class, ``(N,)``."""
        return self.log_probabilities.argmax(dim=-1)

    @property
    def confidence(self) -> Tensor:
        """The probability of the answer, ``(N,)``."""
        return self.log_probabilities.amax(dim=-1).exp()

    @property
    def entropy(self) -> Tensor:
        """``(N,)``, from 0 to log K: all that is uncertain about an answer."""
        return _entropy(self.log_probabilities)

    @property
    def mutual_information(self) -> Tensor:
        """Of class and member, ``(N,)``, from 0 to log K: what is uncertain since members disagree.

        The entropy of the mean less the mean of the entropies (BALD, Houlsby et al. 2011).
        """
        return (self.entropy - self.member_entropy).clamp_min(0.0)

    @property
    def disagreement(self) -> Tensor:
        """The share of pairs of members with different answers, ``(N,)``; 0 with one member."""
        pairs = self.members * (self.members - 1)
        same = (self.votes * (self.votes - 1)).sum(dim=-1)
        return 1.0 - same.double() / pairs if pairs else torch.zeros(len(same), dtype=torch.double)


@dataclass(frozen=True)
class Reliability:
    """Answers in bins by their confidence (DeGroot and Fienberg 1983).

    Attributes:
        count: ``(bins,)``, how many answers there are; the bins part [0, 1] evenly.
        confidence: ``(bins,)``, the mean of theirs; NaN in an empty bin.
        accuracy: ``(bins,)``, the share of them that is right; NaN in an empty bin.
    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error, from 0 to 1 (Naeini et al. 2015).

        The mean over answers of how far confidence and accuracy of their bin are apart.
        """
        gaps = (self.accuracy - self.confidence).abs() * self.count
        return float(gaps[self.count > 0].sum() / self.count.sum())


def reliability(confidence: Tensor, right: Tensor, bins: int = 15) -> Reliability:
    """Bin answers by their confidence.

    A bin holds its lower end, the last one both. (torchmetrics gives a confidence of 1, which is
    common in float32, a bin of its own; otherwise its calibration error is this one.)

    Args:
        confidence: ``(N,)``, from 0 to 1.
        right: ``(N,)``, bool.
        bins: how many.
    """
    ends = torch.linspace(0.0, 1.0, bins + 1, dtype=confidence.dtype)
    place = (torch.bucketize(confidence, ends, right=True) - 1).clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins)
    sums = [torch.bincount(place, values.double(), bins) for values in (confidence, right)]
    return Reliability(count, sums[0] / count, sums[1] / count)


def rejection(uncertainty: Tensor, right: Tensor) -> Tensor:
    """Accuracy of the answers that are left when the most uncertain ones are rejected.

    Among equally uncertain answers it is the mean over all ways to choose.

    Args:
        uncertainty: ``(N,)``, of every answer.
        right: ``(N,)``, bool.

    Returns:
        ``(N,)``, from 0 to 1: the accuracy with 0, 1, ..., N - 1 answers rejected.

    >>> from hyperlight.lab.uncertainty import rejection
    >>> rejection(torch.tensor([0.1, 0.9, 0.2, 0.3]), torch.tensor([True, False, True, False]))
    tensor([0.5000, 0.6667, 1.0000, 1.0000], dtype=torch.float64)
    """
    order = uncertainty.argsort()
    certain_first = uncertainty[order]
    group = torch.zeros_like(order)  # equally uncertain answers have one number
    group[1:] = (certain_first[1:] != certain_first[:-1]).cumsum(dim=0)
    share = torch.bincount(group, right[order].double()) / torch.bincount(group)
    number = torch.arange(1, len(order) + 1, dtype=torch.float64)
    accuracy: Tensor = share[group].cumsum(dim=0) / number
    return accuracy.flip(0)


def auroc(score: Tensor, positive: Tensor) -> float:
    """The probability that a positive has a greater score than a negative; ties count half.

    Args:
        score: ``(N,)``; NaN in it gives NaN.
        positive: ``(N,)``, bool.

    Returns:
        From 0 to 1, 0.5 where the score says nothing; NaN unless there are both kinds.
    """
    from sklearn.metrics import roc_auc_score

    if bool(positive.all()) or not bool(positive.any()) or bool(score.isnan().any()):
        return math.nan
    return float(roc_auc_score(positive.numpy(), score.numpy()))


@dataclass(frozen=True)
class Assessment:
    """How good a predictive distribution is on N images whose classes are known.

    Attributes:
        right: ``(N,)``, bool.
        confidence: ``(N,)``, of the answers.
        accuracy: from 0 to 1.
        nll: negative log-likelihood of the truth, the mean in nats.
        brier: squared distance to the one-hot truth, summed over classes (Brier 1950), the mean;
            from 0 to 2.
        ece: expected calibration error, from 0 to 1.
        auroc: of the entropy as a detector of wrong answers; NaN where all are right, or none.
        rejection: ``(N,)``, see :func:`rejection`, by the entropy.
    """

    right: Tensor
    confidence: Tensor
    accuracy: float
    nll: float
    brier: float
    ece: float
    auroc: float
    rejection: Tensor

    def kept(self, share: float) -> float:
        """The accuracy when that share of all answers, the most uncertain ones, is rejected."""
        last = len(self.rejection) - 1
        return float(self.rejection[min(round(share * len(self.rejection)), last)])


def assess(predictive: Predictive, labels: Tensor) -> Assessment:
    """Compare a predictive distribution with the true classes ``(N,)``."""
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

"""The twins of what is said about uncertain answers: one image at a time, in Python's floats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def softmax(logits: Sequence[float]) -> list[float]:
    """Of one image."""
    largest = max(logits)
    parts = [math.exp(value - largest) for value in logits]
    return [part / sum(parts) for part in parts]


def entropy(probabilities: Sequence[float]) -> float:
    """In nats."""
    return -sum(p * math.log(p) for p in probabilities if p > 0.0)


def average(members: Sequence[Sequence[float]]) -> list[float]:
    """The mean of the members' probabilities of one image, from their logits."""
    each = [softmax(logits) for logits in members]
    return [sum(column) / len(each) for column in zip(*each, strict=True)]


def mutual_information(members: Sequence[Sequence[float]]) -> float:
    """Of class and member: the mean divergence of the members from their average."""
    middle = average(members)
    found = 0.0
    for logits in members:
        for p, q in zip(softmax(logits), middle, strict=True):
            found += p * math.log(p / q) if p > 0.0 else 0.0
    return found / len(members)


def disagreement(members: Sequence[Sequence[float]]) -> float:
    """The share of pairs whose answers differ."""
    answers = [max(range(len(logits)), key=lambda k: logits[k]) for logits in members]
    pairs = list(itertools.combinations(answers, 2))
    return sum(a != b for a, b in pairs) / len(pairs) if pairs else 0.0


def calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int) -> float:
    """Bin by bin."""
    error = 0.0
    for i in range(bins):
        low, high = i / bins, (i + 1) / bins
        inside = [k for k, c in enumerate(confidence) if low <= c and (c < high or i == bins - 1)]
        if inside:
            accuracy = sum(right[k] for k in inside) / len(inside)
            mean = sum(confidence[k] for k in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - mean)
    return error


def rejection(uncertainty: Sequence[float], right: Sequence[bool]) -> list[float]:
    """The mean over all orders of the answers; feasible for a few."""
    found = [0.0] * len(right)
    orders = list(itertools.permutations(range(len(right))))
    for order in orders:
        certain_first = sorted(order, key=lambda k: uncertainty[k])
        for rejected in range(len(right)):
            kept = certain_first[: len(right) - rejected]
            found[rejected] += sum(right[k] for k in kept) / len(kept) / len(orders)
    return found


def auroc(score: Sequence[float], positive: Sequence[bool]) -> float:
    """Pair by pair."""
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, is_a in zip(score, positive, strict=True)
        for b, is_b in zip(score, positive, strict=True)
        if is_a and not is_b
    ]
    return sum(wins) / len(wins)


def brier(probabilities: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """Class by class."""
    return sum(
        (p - (k == label)) ** 2
        for row, label in zip(probabilities, labels, strict=True)
        for k, p in enumerate(row)
    ) / len(labels)

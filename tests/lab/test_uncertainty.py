"""Predictive distributions, calibration and rejection, against float64 twins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from hyperlight.lab.uncertainty import Predictive, assess, auroc, rejection, reliability
from tests.reference import uncertainty as twins

# members, images, classes, scale of the logits, seed
families = st.tuples(
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(2, 5),
    st.sampled_from([0.0, 0.3, 3.0, 300.0]),
    st.integers(0, 99),
)
# Confidences inside a bin, or 0 or 1.
answers = st.lists(
    st.tuples(st.sampled_from([0.0, 0.21, 0.347, 0.512, 0.913, 1.0]), st.booleans()),
    min_size=1,
    max_size=5,
)


def logits(members: int, images: int, classes: int, scale: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (members, images, classes)
    return scale * torch.randn(shape, dtype=torch.float64, generator=generator)


def pooled(each: Tensor) -> Predictive:
    found = Predictive.of(each[0])
    for row in each[1:]:
        found = found + Predictive.of(row)
    return found


def same(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@settings(max_examples=60)
@given(families)
def test_a_family_equals_its_twin(family: tuple[int, int, int, float, int]) -> None:
    each = logits(*family)
    found = pooled(each)
    by_image = each.transpose(0, 1).tolist()
    assert found.members == family[0]
    same(found.probabilities, [twins.average(members) for members in by_image])
    same(found.entropy, [twins.entropy(twins.average(members)) for members in by_image])
    same(found.mutual_information, [twins.mutual_information(members) for members in by_image])
    same(found.disagreement, [twins.disagreement(members) for members in by_image])
    same(found.confidence, [max(twins.average(members)) for members in by_image])
    assert found.votes.sum(dim=-1).tolist() == [family[0]] * family[1]


@settings(max_examples=60)
@given(families)
def test_properties_of_every_family(family: tuple[int, int, int, float, int]) -> None:
    found = pooled(logits(*family))
    most = math.log(family[2]) + 1e-12
    same(found.probabilities.sum(dim=-1), [1.0] * family[1])
    assert ((found.entropy >= 0.0) & (found.entropy <= most)).all()
    assert ((found.mutual_information >= 0.0) & (found.mutual_information <= most)).all()
    assert (found.member_entropy <= found.entropy + 1e-12).all()  # the entropy is concave
    assert ((found.disagreement >= 0.0) & (found.disagreement <= 1.0)).all()
    assert (found.confidence >= 1.0 / family[2] - 1e-12).all()
    labels = torch.zeros(family[1], dtype=torch.int64)
    figures = assess(found, labels)
    assert 0.0 <= figures.ece <= 1.0
    assert 0.0 <= figures.accuracy <= 1.0
    assert 0.0 <= figures.brier <= 2.0
    assert figures.nll >= 0.0


def test_members_may_be_pooled_in_any_order() -> None:
    a, b, c, d, e = (Predictive.of(row) for row in logits(5, 7, 4, 2.0, 0))
    one, other = (a + b) + (c + d) + e, (e + (d + a)) + (b + c)
    for name in ("log_probabilities", "member_entropy", "votes"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    assert one.members == other.members == 5


def test_identical_members_do_not_disagree() -> None:
    row = logits(1, 50, 10, 3.0, 0)[0]
    found = pooled(torch.stack([row] * 8))
    assert found.mutual_information.max() < 1e-12
    assert found.disagreement.max() == 0.0
    torch.testing.assert_close(found.entropy, Predictive.of(row).entropy)


def test_an_unlikely_truth_has_a_finite_likelihood() -> None:
    row = torch.tensor([[0.0, 2000.0]])
    figures = assess(Predictive.of(row) + Predictive.of(row), torch.tensor([0]))
    assert figures.nll == pytest.approx(2000.0)
    assert figures.brier == pytest.approx(2.0)


@settings(max_examples=40)
@given(families, st.integers(0, 99))
def test_scores_equal_their_twins(family: tuple[int, int, int, float, int], seed: int) -> None:
    each = logits(*family)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(family[2], (family[1],), generator=generator)
    found = pooled(each)
    figures = assess(found, labels)
    rows = [twins.average(members) for members in each.transpose(0, 1).tolist()]
    truth = labels.tolist()
    right = [row.index(max(row)) == label for row, label in zip(rows, truth, strict=True)]
    assert figures.brier == pytest.approx(twins.brier(rows, truth), abs=1e-12)
    expected = sum(float(v) for v in -found.log_probabilities.gather(1, labels[:, None])) / len(
        rows
    )
    assert figures.nll == pytest.approx(expected, rel=1e-9)
    if family[3] > 0.0:  # at 0 all classes are equally probable, so any may be the answer
        assert figures.accuracy == pytest.approx(sum(right) / len(right))
        confidence = found.confidence.tolist()
        assert figures.ece == pytest.approx(
            twins.calibration_error(confidence, right, 15), abs=1e-12
        )


@settings(max_examples=100)
@given(answers, st.integers(1, 15))
def test_calibration_error_equals_its_twin(
    given_answers: list[tuple[float, bool]], bins: int
) -> None:
    confidence, right = (list(column) for column in zip(*given_answers, strict=True))
    found = reliability(torch.tensor(confidence, dtype=torch.float64), torch.tensor(right), bins)
    assert found.error == pytest.approx(twins.calibration_error(confidence, right, bins), abs=1e-12)
    assert int(found.count.sum()) == len(right)


def test_calibration_error_is_that_of_torchmetrics_below_confidence_1() -> None:
    found = pooled(logits(3, 500, 10, 2.0, 0))
    labels = torch.randint(10, (500,), generator=torch.Generator().manual_seed(0))
    expected = multiclass_calibration_error(found.probabilities, labels, 10, n_bins=15)
    assert assess(found, labels).ece == pytest.approx(float(expected), rel=1e-5)
    assert assess(found, labels).ece > 0.1


def test_bins_hold_their_answers() -> None:
    confidence = torch.tensor([0.0, 0.49, 0.5, 1.0, 1.0])
    found = reliability(confidence, torch.tensor([True, False, True, True, False]), bins=4)
    assert found.count.tolist() == [1, 1, 1, 2]
    assert found.accuracy.tolist() == [1.0, 0.0, 1.0, 0.5]
    torch.testing.assert_close(
        found.confidence,
        torch.tensor([0.0, 0.49, 0.5, 1.0], dtype=torch.float64),
        atol=1e-7,
        rtol=0,
    )
    assert found.error == pytest.approx((1.0 + 0.49 + 0.5 + 2 * 0.5) / 5, abs=1e-7)


@settings(max_examples=60)
@given(answers)
def test_rejection_is_the_mean_over_all_orders(given_answers: list[tuple[float, bool]]) -> None:
    uncertainty, right = (list(column) for column in zip(*given_answers, strict=True))
    found = rejection(torch.tensor(uncertainty), torch.tensor(right))
    same(found, twins.rejection(uncertainty, right))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_properties_of_every_rejection(given_answers: list[tuple[float, bool]]) -> None:
    uncertainty = torch.tensor([value for value, _ in given_answers], dtype=torch.float64)
    right = torch.tensor([flag for _, flag in given_answers])
    curve = rejection(uncertainty, right)
    assert curve.shape == right.shape
    assert float(curve[0]) == pytest.approx(float(right.double().mean()))  # nothing is rejected
    oracle = rejection((~right).double(), right)
    assert (curve <= oracle + 1e-12).all()
    torch.testing.assert_close(rejection(torch.ones(len(right)), right), curve[:1].expand_as(curve))
    order = torch.randperm(len(right), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rejection(uncertainty[order], right[order]), curve)


def test_fractions_are_rejected() -> None:
    found = assess(Predictive.of(logits(1, 10, 3, 1.0, 0)[0]), torch.arange(10) % 3)
    assert found.kept(0.0) == found.accuracy
    assert found.kept(0.2) == float(found.rejection[2])
    assert found.kept(1.0) == float(found.rejection[9])  # one answer always remains


@settings(max_examples=60)
@given(answers)
def test_auroc_is_counted_over_pairs(given_answers: list[tuple[float, bool]]) -> None:
    score, positive = (list(column) for column in zip(*given_answers, strict=True))
    found = auroc(torch.tensor(score), torch.tensor(positive))
    if len(set(positive)) < 2:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(twins.auroc(score, positive))


def test_a_diverged_network_is_not_calibrated() -> None:
    found = Predictive.of(torch.full((4, 3), math.nan))
    figures = assess(found, torch.tensor([0, 1, 2, 0]))
    assert all(math.isnan(figure) for figure in (figures.nll, figures.brier, figures.ece))
    assert math.isnan(auroc(found.entropy, torch.tensor([True, False, True, False])))
    assert rejection(found.entropy, torch.tensor([True, False, True, False])).shape == (4,)

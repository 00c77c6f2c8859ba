"""The figures draw what was computed; the tests of the task cover the written files."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from hyperlight.lab import uncertainty_figures as figures
from hyperlight.lab.uncertainty import Assessment, Predictive, assess, reliability

LABELS = torch.arange(40) % 4


def family(members: int) -> tuple[Predictive, Assessment, list[Assessment]]:
    """Members that are right more often than not."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(members, 40, 4, generator=generator)
    logits = logits + 1.5 * torch.nn.functional.one_hot(LABELS, 4)
    each = [Predictive.of(row) for row in logits]
    average = each[0]
    for one in each[1:]:
        average = average + one
    return average, assess(average, LABELS), [assess(one, LABELS) for one in each]


def data(line: object) -> Tensor:
    return torch.from_numpy(np.stack(line.get_data()).astype(float))  # type: ignore[attr-defined]


def test_the_diagram_shows_the_bins() -> None:
    _, average, each = family(3)
    figure = figures.calibration(average, each)
    above, other, below, _ = figure.axes
    found = reliability(average.confidence, average.right)
    drawn = data(above.get_lines()[1])
    torch.testing.assert_close(
        drawn, torch.stack([found.confidence, found.accuracy]), equal_nan=True
    )
    heights = torch.tensor([bar.get_height() for bar in below.patches], dtype=torch.float64)
    torch.testing.assert_close(heights, 100.0 * found.count.double() / 40)
    assert above.get_title() == (
        f"average of 3 gammas: calibration error {100 * average.ece:.2f} %"
    )
    mean = sum(one.ece for one in each) / 3
    assert other.get_title() == f"one gamma: calibration error {100 * mean:.2f} %"


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (3, 7), (50, 50), (995, 1000)])
def test_intervals_are_wilsons(right: int, count: int) -> None:
    share = torch.tensor([right / count], dtype=torch.float64)
    below, above = figures._wilson(share, torch.tensor([float(count)], dtype=torch.float64))
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert float(share - below) == pytest.approx(expected.low, abs=1e-3)
    assert float(share + above) == pytest.approx(expected.high, abs=1e-3)


def test_curves_of_rejection() -> None:
    _, average, each = family(3)
    ax = figures.rejections(average, each).axes[0]
    lines = {line.get_label(): data(line) for line in ax.get_lines()}
    assert list(lines) == [
        *("wrong ones first", "average of 3 gammas, by entropy", "one gamma, by its entropy"),
        "chance",
    ]
    own = lines["average of 3 gammas, by entropy"]
    torch.testing.assert_close(own[1], 100.0 * average.rejection)
    torch.testing.assert_close(own[0], 100.0 * torch.arange(40).double() / 40)
    one = 100.0 * torch.stack([member.rejection for member in each]).mean(dim=0)
    torch.testing.assert_close(lines["one gamma, by its entropy"][1], one)
    assert (lines["wrong ones first"][1] >= own[1]).all()
    low, high = ax.get_ylim()
    shown = own[1][own[0] <= 50.0]
    assert low < float(shown.min())
    assert high > float(shown.max())
    wrong = replace(average, right=~average.right, rejection=average.rejection / 20)
    assert figures.rejections(wrong, [wrong]).axes[0].get_ylim()[1] < 60.0  # not up to 100 %


def test_histograms_hold_all_answers_of_a_kind() -> None:
    average, assessed, _ = family(3)
    figure = figures.entropies(average, assessed.right, ("others", average))
    assert [ax.get_xlabel() for ax in figure.axes] == [
        *("predictive entropy (nats)", "mutual information (nats)")
    ]
    for ax in figure.axes:
        kinds = [patch.get_label().split(":")[0] for patch in ax.patches]
        assert kinds == ["right", "wrong", "others"]
        for patch in ax.patches:
            values, _, _ = patch.get_data()  # type: ignore[attr-defined]
            assert float(np.sum(values)) == pytest.approx(100.0)
    alone, assessed, _ = family(1)
    assert (
        len(figures.entropies(alone, assessed.right).axes) == 1
    )  # no mutual information with one member


def test_figures_of_one_network_do_not_mention_gamma() -> None:
    _, average, each = family(1)
    assert len(figures.calibration(average, each).axes) == 2
    ax = figures.rejections(average, each).axes[0]
    labels = [line.get_label() for line in ax.get_lines()]
    assert labels == ["wrong ones first", "the network, by entropy", "chance"]


def test_every_gamma_is_a_point() -> None:
    _, average, each = family(3)
    gammas = torch.tensor([0.2, 0.9, 0.4])
    accuracy, loss = figures.along_gamma(gammas, average, each).axes
    points = data(accuracy.get_lines()[0])
    torch.testing.assert_close(points[0], gammas.double())
    assert points[1].tolist() == [100.0 * one.accuracy for one in each]
    assert data(loss.get_lines()[0])[1].tolist() == [one.nll for one in each]
    assert loss.get_lines()[1].get_ydata()[0] == average.nll  # type: ignore[index]


def test_the_gallery_shows_certain_and_uncertain_images() -> None:
    average, assessed, _ = family(3)
    images = torch.rand(40, 1, 4, 4)
    names = ("rose", "tulip", "a name that is far too long", "fern")
    figure = figures.gallery(images, average, LABELS, names, columns=5)
    (ax,) = figure.axes
    order = average.entropy.argsort()
    wrong = order[~assessed.right[order]]
    expected = [*order[:5].tolist(), *order.flip(0)[:5].tolist(), *wrong[:5].tolist()]
    shown = [torch.from_numpy(np.asarray(image.get_array())) for image in ax.images]
    assert all(
        torch.equal(found, images[i, 0]) or torch.equal(found[..., 0], images[i, 0])
        for found, i in zip(shown, expected, strict=True)
    )
    texts = [text.get_text() for text in ax.texts]
    assert texts[0] == "most certain"
    assert texts[6] == "least certain"
    assert texts[12] == "most certain\nof the wrong"
    captions = [text for text in texts if "%" in text]
    assert len(captions) == len(expected)
    for text, i in zip(captions, expected, strict=True):
        name = names[int(average.answer[i])]
        name = name if len(name) < 15 else "a name that i…"
        assert text.startswith(f"{name} ({100 * float(average.confidence[i]):.0f} %)")
        assert ("\nis " in text) == (int(average.answer[i]) != int(LABELS[i]))


def test_empty_input_is_no_error() -> None:
    lost = Predictive.of(torch.full((40, 4), math.nan))
    sure = Predictive.of(50.0 * torch.nn.functional.one_hot(LABELS, 4))
    for predictive in (lost, sure + sure):
        assessed = assess(predictive, LABELS)
        figures.calibration(assessed, [assessed, assessed])
        figures.rejections(assessed, [assessed, assessed])
        figures.entropies(predictive, assessed.right)
        figures.gallery(torch.rand(40, 3, 4, 4), predictive, LABELS)

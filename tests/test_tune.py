"""Tuning: known optima in every space, the best point seen, and nothing changed behind it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.tune import _onto_simplex, _tangent
from tests.models import PRIMARIES, convolutional, mlp


class Weights(nn.Module):
    """A primary that returns its weights."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(*shape, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.w


def transparent(**inputs: hl.Input) -> hl.HyperModel:
    """A model whose predicted weights are its inputs, concatenated; categories one-hot."""
    numbers = sum(space.numel for space in inputs.values() if not space.discrete)
    categories = sum(
        space.numel * space.n for space in inputs.values() if isinstance(space, hl.Categorical)
    )
    model = hl.hypernetize(Weights(numbers + categories), inputs, hidden=(), encoding=None)
    with torch.no_grad():
        for embedding in model.hypernet.embeddings:
            embedding.weight.copy_(torch.eye(len(embedding.weight)))
        head = model.hypernet.head.weight.zero_()
        for i in range(numbers):
            head[i, i] = 1.0
        for i in range(categories):
            head[numbers + i, 2 * numbers + i] = 1.0
    return model


def to(target: list[float]) -> Callable[[nn.Module], Tensor]:
    wanted = torch.tensor(target, dtype=torch.float64)
    return lambda net: (net() - wanted).square().sum()


# --- what it finds -------------------------------------------------------------

OPTIMA = [
    (hl.Uniform(-3.0, 5.0), [1.7]),
    (hl.Uniform(0.0, 1.0, shape=2), [0.2, 0.9]),
    (hl.Normal(3, loc=10.0, scale=4.0), [12.0, 7.0, 10.5]),
    (hl.Vector(2, scale=0.1), [0.05, -0.11]),
    (hl.Simplex(3), [0.2, 0.5, 0.3]),
]


@pytest.mark.parametrize(("space", "optimum"), OPTIMA, ids=lambda v: repr(v))
def test_a_quadratic_is_brought_to_its_minimum(space: hl.Input, optimum: list[float]) -> None:
    tuned = hl.tune(transparent(g=space), to(optimum))
    wanted = torch.tensor(optimum).double().reshape(space.event_shape)
    apart = space.standardize(tuned.inputs["g"]) - space.standardize(wanted)
    assert apart.abs().max() < 1e-3
    assert tuned.history.shape == (4, 101)
    assert tuned.loss.shape == ()
    assert tuned.inputs["g"].shape == space.event_shape


@pytest.mark.parametrize("optimum", [2e-6, 3e-4, 0.7])
def test_log_uniform_is_searched_by_orders_of_magnitude(optimum: float) -> None:
    model = transparent(rate=hl.LogUniform(1e-6, 1.0))
    tuned = hl.tune(model, lambda net: (net()[0].log10() - math.log10(optimum)) ** 2, restarts=1)
    assert tuned.inputs["rate"].item() == pytest.approx(optimum, rel=0.02)


@pytest.mark.parametrize(
    "space",
    [hl.Uniform(-0.3, 0.7), hl.LogUniform(1e-4, 0.3), hl.LogUniform(1e-30, 1.0)],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_ends_are_reached_and_left(space: hl.Input, dtype: torch.dtype, sign: int) -> None:
    low, high = space.support
    if dtype == torch.float16 and low == 1e-30:
        low, high = 1e-4, 1.0
        space = hl.LogUniform(low, high)
    model = transparent(g=space).to(dtype)
    best, worst = (low, high) if sign > 0 else (high, low)

    def objective(net: nn.Module) -> Tensor:
        return sign * space.standardize(net().double()).sum()

    tuned = hl.tune(model, objective, restarts=1, g=worst)
    assert tuned.inputs["g"].item() == pytest.approx(
        torch.tensor(best, dtype=dtype).item(), rel=1e-13 if dtype == torch.float64 else 0.0
    )
    model.hypernet.check(**tuned.inputs)
    again = hl.tune(model, objective, restarts=1, g=tuned.inputs["g"])
    assert again.loss == tuned.loss


@pytest.mark.parametrize("high", [0.1 * k for k in range(1, 10)])
def test_no_value_is_past_an_end_by_rounding(high: float) -> None:
    model = transparent(g=hl.LogUniform(1e-4, high))
    for sign in (1, -1):
        tuned = hl.tune(model, lambda net, sign=sign: sign * net().log().sum(), restarts=1)
        assert 1e-4 <= tuned.inputs["g"].item() <= high


def test_the_path_does_not_depend_on_the_unit_of_the_objective() -> None:
    model = transparent(g=hl.Normal())
    once = hl.tune(model, to([1.3]))
    small = hl.tune(model, lambda net: 1e-8 * to([1.3])(net))
    assert torch.allclose(once.inputs["g"], small.inputs["g"], rtol=1e-6)
    assert torch.allclose(once.history * 1e-8, small.history, rtol=1e-6, atol=1e-16)


@pytest.mark.parametrize(
    ("cost", "optimum"),
    [
        ([1.0, 2.0, 3.0], [1.0, 0.0, 0.0]),
        ([3.0, 2.0, 1.0], [0.0, 0.0, 1.0]),
        ([10.0, 9.0, 11.0], [0.0, 1.0, 0.0]),
    ],
)
@pytest.mark.parametrize("start", [None, [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
def test_corners_of_a_simplex_are_reached_from_other_corners(
    cost: list[float], optimum: list[float], start: list[float] | None
) -> None:
    model = transparent(ray=hl.Simplex(3))
    objective = lambda net: (net() * torch.tensor(cost)).sum()  # noqa: E731
    given = {} if start is None else {"ray": start}
    tuned = hl.tune(model, objective, restarts=1, **given)
    assert tuned.inputs["ray"].tolist() == pytest.approx(optimum, abs=1e-6)


@pytest.mark.parametrize("common", [0.0, 30.0, -30.0])
def test_a_face_of_a_simplex_is_reached_whatever_all_entries_share(common: float) -> None:
    """A gradient that all entries share moves no point of a simplex, and must not stop one."""
    wanted = torch.tensor([-0.5, 0.6, 0.4], dtype=torch.float64)
    model = transparent(ray=hl.Simplex(3))
    tuned = hl.tune(
        model,
        lambda net: (net() - wanted).square().sum() + common * net().sum(),
        restarts=1,
        ray=torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64),
    )
    # the nearest point of the face x0 = 0, by hand: both others lose what they have too much
    assert tuned.inputs["ray"].tolist() == pytest.approx([0.0, 0.6, 0.4], abs=2e-3)


def test_restarts_find_the_deeper_of_two_minima() -> None:
    model = transparent(g=hl.Uniform(0.0, 1.0))

    def objective(net: nn.Module) -> Tensor:
        w = net()[0]  # minima near 0.15 (value 0.1) and 0.85 (value 0)
        return torch.minimum((w - 0.15).square() + 0.1, (w - 0.85).square() * 4)

    once = hl.tune(model, objective, restarts=1, g=0.1)
    assert once.inputs["g"].item() == pytest.approx(0.15, abs=0.01)
    often = hl.tune(model, objective, restarts=6, g=0.1)
    assert often.inputs["g"].item() == pytest.approx(0.85, abs=0.01)
    assert torch.equal(often.history[0], once.history[0])
    assert often.loss == often.history.min()


def test_the_best_point_is_returned_not_the_last() -> None:
    model = transparent(g=hl.Uniform(0.0, 1.0))

    def objective(net: nn.Module) -> Tensor:  # a needle that descent jumps over
        w = net()[0]
        return w - torch.where((w - 0.5).abs() < 0.02, 5.0, 0.0)

    tuned = hl.tune(model, objective, restarts=1, g=0.9, lr=0.03)
    assert tuned.history[0, -1] > tuned.loss == tuned.history.min()
    assert abs(tuned.inputs["g"].item() - 0.5) < 0.02
    assert objective(model.bind(**tuned.inputs)).item() == tuned.loss.item()


@settings(deadline=None, max_examples=25)
@example(start=1.0, optimum=0.2, lr=0.5, steps=12)  # goes past the end and comes back
@given(
    start=st.floats(0.0, 1.0),
    optimum=st.floats(-0.5, 1.5),
    lr=st.floats(0.01, 0.5),
    steps=st.integers(1, 12),
)
def test_the_descent_is_adam_by_hand(start: float, optimum: float, lr: float, steps: int) -> None:
    """On Uniform(2, 6), whose standardized coordinate is (g - 2) / 4."""
    z, m, v = start, 0.0, 0.0
    history = []
    for step in range(steps + 1):
        g = 2.0 + 4.0 * z
        history.append((g - (2.0 + 4.0 * optimum)) ** 2)
        gradient = 2.0 * (g - (2.0 + 4.0 * optimum)) * 4.0
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        rate = lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        upward = m / (1.0 - 0.8 ** (step + 1))
        size = math.sqrt(v / (1.0 - 0.9 ** (step + 1))) + 1e-18
        z = min(max(z - rate * upward / size, 0.0), 1.0)
    tuned = hl.tune(
        transparent(g=hl.Uniform(2.0, 6.0)),
        to([2.0 + 4.0 * optimum]),
        steps=steps,
        lr=lr,
        restarts=1,
        g=2.0 + 4.0 * start,
    )
    assert tuned.history[0].tolist() == pytest.approx(history, rel=1e-6, abs=1e-9)
    assert tuned.loss.item() == pytest.approx(min(history), rel=1e-6, abs=1e-9)


# --- starts, fixed and discrete inputs --------------------------------------------


def test_starts_are_given_median_or_drawn_and_fixed_inputs_stay() -> None:
    model = transparent(a=hl.Uniform(0.0, 2.0), b=hl.LogUniform(1e-4, 1.0), c=hl.Normal())
    seen: list[list[float]] = []

    def objective(net: nn.Module) -> Tensor:
        seen.append(net().tolist())
        return net().square().sum()

    tuned = hl.tune(model, objective, steps=3, restarts=3, fixed={"c": 1.5}, a=0.25)
    starts = seen[::4]
    assert starts[0] == pytest.approx([0.25, 1e-2, 1.5])
    assert len({tuple(start) for start in starts}) == 3
    assert all(point[2] == 1.5 for point in seen)
    assert tuned.inputs["c"].item() == 1.5
    again = hl.tune(model, objective, steps=3, restarts=3, fixed={"c": 1.5}, a=0.25)
    assert torch.equal(again.history, tuned.history)
    generator = torch.Generator().manual_seed(5)
    other = hl.tune(
        model, objective, steps=3, restarts=3, fixed={"c": 1.5}, a=0.25, generator=generator
    )
    assert torch.equal(other.history[0], tuned.history[0])
    assert not torch.equal(other.history[1], tuned.history[1])


def test_no_random_state_is_touched_and_the_start_is_not_changed() -> None:
    model = transparent(g=hl.Uniform(0.0, 1.0))
    state = torch.get_rng_state()
    start = torch.tensor(0.5, requires_grad=True)
    hl.tune(model, to([0.1]), steps=2, g=start)
    assert torch.equal(torch.get_rng_state(), state)
    assert start.item() == 0.5
    assert start.grad is None
    pair = transparent(g=hl.Uniform(0.0, 1.0), h=hl.Uniform(0.0, 1.0))
    tuned = hl.tune(pair, to([0.1, 0.1]), steps=2, fixed={"h": start})
    assert not tuned.inputs["h"].requires_grad


def test_every_category_is_tried_each_with_descent() -> None:
    model = transparent(g=hl.Uniform(0.0, 1.0), site=hl.Categorical(3))
    depth = torch.tensor([3.0, 1.0, 2.0]).double()
    optimum = torch.tensor([0.1, 0.8, 0.4]).double()

    def objective(net: nn.Module) -> Tensor:
        g, site = net()[0], net()[1:]
        return (g - site @ optimum).square() + site @ depth

    tuned = hl.tune(model, objective, restarts=2)
    assert tuned.history.shape == (2 * 3, 101)
    assert tuned.inputs["site"].item() == 1
    assert tuned.inputs["site"].dtype == torch.int64
    assert tuned.inputs["g"].item() == pytest.approx(0.8, abs=2e-3)
    for held in ({"site": 2}, {"fixed": {"site": 2}}):
        tuned = hl.tune(model, objective, restarts=2, **held)
        assert tuned.history.shape == (2, 101)
        assert tuned.inputs["site"].item() == 2
        assert tuned.inputs["g"].item() == pytest.approx(0.4, abs=2e-3)


def test_with_categories_alone_each_combination_is_evaluated_once() -> None:
    model = transparent(a=hl.Categorical(2), b=hl.Categorical(3))
    table = torch.tensor([[5.0, 4.0, 3.0], [6.0, 1.0, 2.0]]).double()
    tuned = hl.tune(model, lambda net: net()[:2] @ table @ net()[2:])
    assert tuned.history.tolist() == [[5.0], [4.0], [3.0], [6.0], [1.0], [2.0]]
    assert (tuned.inputs["a"].item(), tuned.inputs["b"].item(), tuned.loss.item()) == (1, 1, 1.0)


def test_an_argument_of_tune_can_still_be_the_name_of_a_fixed_input() -> None:
    model = transparent(lr=hl.Uniform(0.0, 1.0), objective=hl.Uniform(0.0, 1.0))
    tuned = hl.tune(model, to([0.0, 0.5]), lr=0.1, fixed={"lr": 0.25}, objective=0.9)
    assert tuned.inputs["lr"].item() == 0.25
    assert tuned.inputs["objective"].item() == pytest.approx(0.5, abs=5e-3)


# --- one input for every sample ----------------------------------------------------


class Looped(hl.HyperModel):
    """One set of weights per sample in forward, by a loop."""

    def forward(self, **gamma: Any) -> Tensor:
        theta = self.predict(**gamma)
        rows = [dict(zip(theta, row, strict=True)) for row in zip(*theta.values(), strict=True)]
        return torch.stack([hl.bind(self.primary, row)() for row in rows])


def looped(**inputs: hl.Input) -> hl.HyperModel:
    model = transparent(**inputs)
    return Looped(model.primary, model.hypernet)


@pytest.mark.parametrize(
    "spaces",
    [
        {"g": hl.Uniform(-1.0, 1.0)},
        {"g": hl.LogUniform(1e-3, 1.0), "z": hl.Normal(2)},
        {"ray": hl.Simplex(3)},
    ],
    ids=lambda spaces: "+".join(map(repr, spaces.values())),
)
def test_every_sample_is_tuned_as_if_alone(spaces: dict[str, hl.Input]) -> None:
    samples = 5
    model = looped(**spaces)
    starts = model.sample((samples,), generator=torch.Generator().manual_seed(1))
    target = model.predict(**model.sample((samples,)))["w"].detach()
    together = hl.tune(
        model,
        lambda net: (net() - target).square().sum(dim=1),
        restarts=1,
        steps=30,
        **starts,
    )
    assert together.history.shape == (1, 31, samples)
    for i in range(samples):
        alone = hl.tune(
            model,
            lambda net, i=i: (net() - target[i]).square().sum(),
            restarts=1,
            steps=30,
            **{name: value[i] for name, value in starts.items()},
        )
        assert torch.allclose(alone.history, together.history[..., i], rtol=1e-9, atol=1e-12)
        assert torch.allclose(alone.loss, together.loss[i], rtol=1e-9, atol=1e-12)
        for name in spaces:
            assert torch.allclose(alone.inputs[name], together.inputs[name][i], atol=1e-9)


@pytest.mark.parametrize("primary", ["mlp", "lstm", "tied"])
def test_every_sample_is_tuned_in_one_forward(primary: str) -> None:
    make, inputs = PRIMARIES[primary]
    spaces = {"g": hl.LogUniform(1e-3, 1.0), "z": hl.Normal(2)}
    model = hl.hypernetize(make().double(), spaces)
    x = inputs().double()
    y = torch.randn_like(model(x, **model.sample())).detach()
    starts = model.sample((len(x),))
    together = hl.tune(
        model,
        lambda net: (net(x) - y).square().flatten(1).mean(1),
        restarts=1,
        steps=10,
        **starts,
    )
    assert together.loss.shape == (len(x),)
    for i in range(len(x)):
        alone = hl.tune(
            model,
            lambda net, i=i: (net(x[i : i + 1]) - y[i : i + 1]).square().mean(),
            restarts=1,
            steps=10,
            **{name: value[i] for name, value in starts.items()},
        )
        assert torch.allclose(alone.history, together.history[..., i], rtol=1e-7, atol=1e-12)
        for name in spaces:
            assert torch.allclose(alone.inputs[name], together.inputs[name][i], atol=1e-7)
    found = model(x, **together.inputs)
    assert torch.allclose((found - y).square().flatten(1).mean(1), together.loss)


def test_the_best_is_taken_sample_by_sample_over_all_runs() -> None:
    model = looped(g=hl.Uniform(0.0, 1.0), site=hl.Categorical(2))
    wanted = torch.tensor([0, 1, 1])
    tuned = hl.tune(
        model,
        lambda net: (
            (net()[:, 0] - 0.3).square() + (net()[:, 1].round() - (wanted == 0).double()) ** 2
        ),
        restarts=2,
        g=torch.tensor([0.1, 0.5, 0.9]),
    )
    assert tuned.inputs["site"].tolist() == [0, 1, 1]
    assert tuned.inputs["g"].tolist() == pytest.approx([0.3] * 3, abs=2e-3)
    assert torch.equal(tuned.loss, tuned.history.flatten(0, 1).amin(0))
    assert str(tuned).startswith("3 samples tuned: mean loss")


def test_a_sample_that_is_not_finite_does_not_stop_the_others() -> None:
    model = looped(g=hl.Uniform(-1.0, 1.0))

    def objective(net: Callable[[], Tensor]) -> Tensor:
        w = net()[:, 0]
        return torch.stack([(w[0] - 0.5).square(), (w[1] - 5.0).log(), w[2].abs().sqrt()])

    tuned = hl.tune(model, objective, restarts=1, g=torch.tensor([0.0, 0.2, 0.0]))
    assert tuned.inputs["g"].tolist() == pytest.approx([0.5, 0.2, 0.0], abs=2e-3)
    assert tuned.loss[1].item() == math.inf
    assert tuned.history[0, 1:, 1].isnan().all()
    assert tuned.history[0, :, 0].isfinite().all()
    # the gradient of the root is infinite at zero: it stays there
    assert tuned.history[0, 1:, 2].isnan().all()


# --- objectives that are not finite ---------------------------------------------------


def test_a_run_stops_where_the_objective_is_not_finite_and_others_go_on() -> None:
    model = transparent(g=hl.Uniform(-1.0, 1.0))
    calls: list[float] = []

    def objective(net: nn.Module) -> Tensor:  # NaN below zero; the minimum is at 0.5
        w = net()[0]
        calls.append(float(w.detach()))
        return (w - 0.5).square() + 0.0 * w.sqrt()

    tuned = hl.tune(model, objective, restarts=8, g=-0.5)
    assert tuned.history[0].isnan().all()
    assert calls[1] != calls[0]  # one call, then the next run
    assert tuned.inputs["g"].item() == pytest.approx(0.5, abs=2e-3)
    finite = tuned.history[tuned.history.isfinite()]
    assert tuned.loss == finite.min()


def test_objectives_that_are_never_finite_are_refused() -> None:
    model = transparent(g=hl.Uniform(0.0, 1.0))
    with pytest.raises(hl.ObjectiveError) as error:
        hl.tune(model, lambda net: net()[0] / 0.0, restarts=3)
    assert "not finite at the start of any of the 3 runs; the first gave inf" in str(error.value)
    assert "Pass start values" in str(error.value)


# --- nothing else changes -----------------------------------------------------------


def test_the_model_is_in_eval_mode_and_as_it_was_afterwards() -> None:
    model = hl.hypernetize(convolutional(), {"g": hl.Uniform(0.0, 1.0)})
    model.train()
    model.primary[1].eval()
    model.primary[0].weight.requires_grad_(False)
    model.primary[0].weight.grad = torch.ones_like(model.primary[0].weight)
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    x = torch.randn(4, 1, 4, 4)
    seen: set[bool] = set()

    def objective(net: nn.Module) -> Tensor:
        seen.update(module.training for module in net.modules())
        seen.update(module.training for module in model.modules())
        return net(x).square().mean()

    def failing(net: nn.Module) -> Tensor:
        raise RuntimeError("mine")

    tuned = hl.tune(model, objective, steps=3)
    assert seen == {False}
    with pytest.raises(RuntimeError, match="mine"):
        hl.tune(model, failing)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(model.primary[0].weight.grad, torch.ones_like(model.primary[0].weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "primary.0.weight")
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    for tensor in (*tuned.inputs.values(), tuned.loss, tuned.history):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [False, True])
def test_it_works_on_frozen_models_and_where_gradients_are_off(
    context: Callable[[], Any], frozen: bool
) -> None:
    model = hl.hypernetize(mlp(), {"g": hl.Uniform(0.0, 1.0), "z": hl.Normal(2)})
    model.requires_grad_(not frozen)
    x = torch.randn(4, 3)
    with context():
        tuned = hl.tune(model, lambda net: net(x).square().mean(), steps=5, g=0.5)
    assert tuned.loss < tuned.history[0, 0]


# --- what it says ------------------------------------------------------------------


def test_it_prints_what_it_found() -> None:
    model = transparent(g=hl.Uniform(0.0, 1.0), z=hl.Normal(2))
    text = str(hl.tune(model, to([0.25, 0.0, 0.0]), g=0.75))
    assert re.fullmatch(
        r"g=0\.2[45]\d*, z=\(\S+, \S+\): loss \S+, from 0\.25 at the start of 4 runs", text
    )


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (lambda net: net(), r"shape \(2,\) .* expected .* shape \(\): a scalar, as by .mean"),
        (lambda net: net().sum().item(), r"returned float; .* shape \(\): a scalar, .* no .item"),
        (lambda net: net().sum().detach(), "does not depend on the inputs 'g', 'h'. Compute it"),
        (lambda net: torch.ones((), requires_grad=True), "does not depend on the inputs"),
        (
            lambda net: (net() > 0).sum(),
            "torch.int64; expected a floating-point tensor .* or counts",
        ),
    ],
)
def test_objectives_that_cannot_be_descended_are_refused(
    objective: Callable[[nn.Module], Any], words: str
) -> None:
    model = transparent(g=hl.Uniform(0.0, 1.0), h=hl.Uniform(0.0, 1.0))
    with pytest.raises(hl.ObjectiveError, match=words):
        hl.tune(model, objective)


def test_a_mean_over_samples_is_refused_where_every_sample_has_its_own_input() -> None:
    model = looped(g=hl.Uniform(0.0, 1.0))
    with pytest.raises(
        hl.ObjectiveError, match=r"shape \(\) .* expected .* shape \(3,\): one loss for"
    ):
        hl.tune(model, lambda net: net().mean(), g=torch.rand(3))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"h": 0.5}, hl.InputError, "'h' is neither an input of this model"),
        ({"step": 5}, hl.InputError, "Did you mean 'steps'"),
        ({"fixed": {"gg": 0.5}}, hl.InputError, "Did you mean 'g'"),
        ({"g": 0.5, "fixed": {"g": 0.5}}, hl.InputError, "'g' was given a start and was fixed"),
        ({"g": 1.5}, hl.InputError, r"'g' was 1.5; expected values in \[0, 1\]"),
        ({"g": torch.rand(2, 3)}, hl.InputError, r"batch shape \(2, 3\); expected \(\), or \(B,\)"),
        ({"fixed": {"g": 0.5}, "s": [0, 1]}, hl.ConfigurationError, "Nothing is left to tune"),
        ({}, hl.ConfigurationError, "discrete input 's', .* too many values .* Give the value"),
        ({"steps": 0}, hl.ConfigurationError, "steps=0: expected an integer, 1 or more"),
        ({"restarts": 1.5}, hl.ConfigurationError, "restarts=1.5: expected an integer"),
        ({"lr": -1.0}, hl.ConfigurationError, "lr was -1.0; expected a positive rate"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    model = transparent(g=hl.Uniform(0.0, 1.0), s=hl.Categorical(2, shape=2))
    with pytest.raises(error, match=words):
        hl.tune(model, lambda net: net().sum(), **arguments)


# --- blends and gain ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_blend_is_found(dtype: torch.dtype) -> None:
    """The embedding of a blend of unit vectors is its weights, divided by their norm."""
    model = transparent(task=hl.Categorical(3)).to(dtype)
    wanted = torch.tensor([0.2, 0.0, 0.8])
    tuned = hl.tune(model, to((wanted / wanted.norm()).tolist()), task=torch.full((3,), 1 / 3))
    assert tuned.inputs["task"].tolist() == pytest.approx(wanted.tolist(), abs=5e-3)
    assert tuned.inputs["task"].dtype == dtype
    assert tuned.history.shape == (4, 101)
    model.hypernet.check(**tuned.inputs)
    assert torch.equal(model(**tuned.inputs), model.bind(**tuned.inputs)())
    held = hl.tune(
        transparent(task=hl.Categorical(3), g=hl.Uniform()),
        to([0.3, 0.6, 0.8, 0.0]),
        fixed={"task": {0: 0.5, 1: 0.5}},
    )
    assert held.inputs["task"].tolist() == [0.5, 0.5, 0.0]
    assert held.inputs["g"].item() == pytest.approx(0.3, abs=2e-3)


def test_a_blend_is_found_for_every_sample() -> None:
    model = looped(task=hl.Categorical(3))
    wanted = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.1, 0.9]]).double()
    directions = nn.functional.normalize(wanted, dim=-1)
    tuned = hl.tune(
        model, lambda net: (net() - directions).square().sum(-1), task=torch.full((2, 3), 1 / 3)
    )
    torch.testing.assert_close(tuned.inputs["task"].double(), wanted, atol=5e-3, rtol=0)
    assert tuned.loss.shape == (2,)


def test_without_a_blend_categories_are_tried_as_before() -> None:
    model = transparent(task=hl.Categorical(3))
    tuned = hl.tune(model, to([0.6, 0.8, 0.0]))
    assert tuned.inputs["task"].item() == 1
    assert tuned.history.shape == (3, 1)
    alone = transparent(task=hl.Categorical(1))
    with pytest.raises(hl.ConfigurationError, match="Nothing is left to tune"):
        hl.tune(alone, to([0.5]), task=torch.ones(1))


def test_other_runs_start_at_draws_of_the_simplex() -> None:
    model = transparent(task=hl.Categorical(3, 2))
    starts: list[Tensor] = []

    def objective(net: nn.Module) -> Tensor:
        starts.append(net().detach())
        return net().sum()

    hl.tune(model, objective, steps=1, restarts=3, task=torch.full((2, 3), 1 / 3))
    first = torch.stack(starts[::2])
    assert len({tuple(row.tolist()) for row in first}) == 3
    again, starts = starts, []
    hl.tune(model, objective, steps=1, restarts=3, task=torch.full((2, 3), 1 / 3))
    assert all(torch.equal(a, b) for a, b in zip(again, starts, strict=True))


def test_the_gain_is_found_and_held() -> None:
    model = transparent(g=hl.Uniform(0.0, 1.0), h=hl.Uniform(0.0, 1.0))
    tuned = hl.tune(model, to([0.75, 1.5]), gain=1.0, fixed={"g": 0.5})
    assert tuned.inputs["gain"].item() * tuned.inputs["h"].item() == pytest.approx(1.5, abs=0.01)
    assert tuned.inputs["gain"].item() == pytest.approx(1.5, abs=0.01)
    assert tuned.loss.item() < 1e-4
    theta = model.predict(**tuned.inputs)
    assert next(iter(theta.values())).sum().item() == pytest.approx(2.25, abs=0.02)
    held = hl.tune(model, to([0.6, 1.6]), fixed={"gain": 2.0})
    assert held.inputs["gain"].item() == 2.0
    assert held.inputs["g"].item() == pytest.approx(0.3, abs=2e-3)
    each = hl.tune(
        looped(g=hl.Uniform(0.0, 1.0)),
        lambda net: (net()[:, 0] - torch.tensor([0.2, 2.0])).square(),
        gain=torch.ones(2),
        fixed={"g": 1.0},
    )
    assert each.inputs["gain"].tolist() == pytest.approx([0.2, 2.0], abs=0.02)
    assert each.inputs["g"].shape == (2,)


def test_a_gain_of_the_primary_is_not_tuned() -> None:
    model = transparent(gain=hl.Uniform(0.0, 1.0))
    assert hl.tune(model, to([0.3])).inputs["gain"].item() == pytest.approx(0.3, abs=2e-3)
    with pytest.raises(hl.InputError, match="gain was 'a'"):
        hl.tune(transparent(g=hl.Uniform(0.0, 1.0)), to([0.3]), gain="a")


# --- the geometry of a simplex -----------------------------------------------------


def naive_projection(point: list[float]) -> list[float]:
    """By bisection for the level that leaves a sum of 1."""
    low, high = min(point) - 1.0, max(point)
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if sum(max(p - level, 0.0) for p in point) > 1 else (low, level)
    return [max(p - high, 0.0) for p in point]


entries = st.lists(st.floats(-3.0, 3.0), min_size=2, max_size=6)


@settings(deadline=None)
@given(point=entries)
def test_projection_is_the_nearest_point_of_the_simplex(point: list[float]) -> None:
    found = _onto_simplex(torch.tensor([point, point], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx(naive_projection(point), abs=1e-9)
    assert torch.equal(found[0], found[1])


@settings(deadline=None)
@given(
    point=entries,
    gradient=st.lists(st.floats(-2.0, 2.0), min_size=6, max_size=6),
)
def test_the_tangent_is_the_direction_in_which_projection_lets_a_point_go(
    point: list[float], gradient: list[float]
) -> None:
    x = _onto_simplex(torch.tensor(point, dtype=torch.float64))
    g = torch.tensor(gradient[: len(point)], dtype=torch.float64)
    x = torch.where(x < 1e-3, 0.0, x)
    x = x / x.sum()
    small = 1e-5
    moved = (x - _onto_simplex(x - small * g)) / small
    assert torch.allclose(_tangent(hl.Simplex(len(point)), x, g), moved, atol=1e-6)

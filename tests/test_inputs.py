"""Inputs: normalisation by section 4 of the paper, draws, and values outside the space."""

from __future__ import annotations

import math
import re
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hyperlight as hl
from tests.models import one_graph

SPACES = [
    hl.Uniform(-2.0, 0.5),
    hl.Uniform(0.0, 1.0, shape=(2, 3)),
    hl.LogUniform(1e-4, 1.0),
    hl.LogUniform(0.5, 1e3, shape=4),
    hl.Normal(3, loc=1.0, scale=2.0),
    hl.Normal(),
    hl.Vector(5, scale=0.1),
    hl.Uniform(-1.0, 3.0, endpoints=0.3),
]

finite = st.floats(-1e3, 1e3)


@given(low=finite, width=st.floats(1e-3, 1e3), p=st.floats(0.0, 1.0))
def test_uniform_is_min_max_scaling(low: float, width: float, p: float) -> None:
    value = torch.tensor(low + p * width, dtype=torch.float64)
    expected = (float(value) - low) / ((low + width) - low)
    assert hl.Uniform(low, low + width).normalize(value).item() == pytest.approx(expected, abs=1e-9)


@given(low=st.floats(1e-8, 1.0), factor=st.floats(1.5, 1e6), p=st.floats(0.0, 1.0))
def test_log_uniform_is_min_max_scaling_of_the_logarithm(
    low: float, factor: float, p: float
) -> None:
    value = torch.tensor(low * factor**p, dtype=torch.float64)
    normalized = hl.LogUniform(low, low * factor).normalize(value).item()
    assert normalized == pytest.approx(p, abs=1e-9)


@given(loc=finite, scale=st.floats(1e-2, 1e2), z=st.floats(-20, 20))
def test_unbounded_inputs_go_through_the_logistic_function(
    loc: float, scale: float, z: float
) -> None:
    value = torch.tensor(loc + scale * z, dtype=torch.float64)
    expected = 1.0 / (1.0 + math.exp(-(float(value) - loc) / scale))
    for space in (hl.Normal(loc=loc, scale=scale), hl.Vector(1, loc=loc, scale=scale)):
        assert space.normalize(value).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("space", SPACES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_draws_have_the_shape_lie_inside_and_normalize_to_the_unit_interval(
    space: hl.Input, dtype: torch.dtype
) -> None:
    value = space.sample((50, 2), dtype=dtype)
    assert value.shape == (50, 2, *space.event_shape)
    assert value.dtype == dtype
    space.check_values(value)
    normalized = space.normalize(value)
    slack = 8 * torch.finfo(dtype).eps
    assert normalized.min() >= -slack
    assert normalized.max() <= 1 + slack
    assert normalized.double().std() > 0.05


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_draws_follow_the_distribution_and_the_generator(space: hl.Input) -> None:
    def draw(dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return space.sample((20_000,), generator=generator, dtype=dtype)

    values = draw(torch.float64)
    assert torch.equal(values, draw(torch.float64))
    assert torch.equal(values.float(), draw(torch.float32))
    for p in (0.1, 0.5, 0.9) if not getattr(space, "endpoints", 0.0) else ():
        at = space.quantile(torch.tensor(p, dtype=torch.float64))
        share = (values <= at).double().mean().item()
        # 5 standard errors of a share of at least 20,000 independent draws
        assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 20_000))


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_a_grid_is_sorted_inside_and_spreads_over_the_space(space: hl.Input) -> None:
    grid = space.grid(7)
    assert grid.shape == (7, *space.event_shape)
    space.check_values(grid)
    assert (grid.diff(dim=0) > 0).all()
    low, high = space.support
    if math.isfinite(low):
        assert torch.allclose(grid[0], torch.full_like(grid[0], low))
        assert torch.allclose(grid[-1], torch.full_like(grid[-1], high))


@pytest.mark.parametrize("points", [2, 7])
def test_a_grid_holds_the_quantiles_that_are_documented(points: int) -> None:
    """Of the normal distribution as the standard library has it, and both ends of a range."""
    halves = [(i + 0.5) / points for i in range(points)]
    normal = [NormalDist(1.0, 2.0).inv_cdf(p) for p in halves]
    for space in (hl.Normal(3, loc=1.0, scale=2.0), hl.Vector(3, loc=1.0, scale=2.0)):
        expected = torch.tensor(normal, dtype=torch.float64)[:, None].expand(points, 3)
        torch.testing.assert_close(space.grid(points, dtype=torch.float64), expected)
    steps = [i / (points - 1) for i in range(points)]
    found = hl.Uniform(-2.0, 0.5).grid(points, dtype=torch.float64)
    assert found.tolist() == pytest.approx([-2.0 + 2.5 * p for p in steps])
    found = hl.LogUniform(1e-4, 1.0).grid(points, dtype=torch.float64)
    assert found.tolist() == pytest.approx([1e-4 ** (1.0 - p) for p in steps])


def test_the_ends_of_a_space_are_inside_it_in_every_dtype() -> None:
    space = hl.LogUniform(1e-4, 0.3)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        space.check_values(torch.tensor([1e-4, 0.3], dtype=dtype))
    with pytest.raises(hl.InputError):
        space.check_values(torch.tensor([1e-4 * (1 - 1e-5)]))


@pytest.mark.parametrize(
    ("space", "value", "words"),
    [
        (hl.Uniform(0.0, 0.5), 0.7, ["'scale'", "0.7", "[0, 0.5]", "wider space"]),
        (hl.Uniform(0.0, 0.5), torch.tensor(0.7), ["'scale'", "0.7", "[0, 0.5]", "wider space"]),
        (hl.Uniform(0.0, 0.5), torch.tensor(-0.1), ["-0.1", "[0, 0.5]"]),
        (hl.Uniform(0.0, 0.5), float("nan"), ["nan", "became NaN"]),
        (hl.Uniform(0.0, 0.5), torch.tensor(float("nan")), ["NaN", "became NaN"]),
        (hl.LogUniform(1e-4, 1.0), 0.0, ["0.0", "[0.0001, 1]"]),
        (hl.Normal(), float("inf"), ["inf", "finite values"]),
        (hl.Normal(2), torch.tensor([0.0, float("inf")]), ["inf", "finite values"]),
        (hl.Normal(2), torch.tensor([0.0, float("nan")]), ["NaN", "became NaN"]),
        (
            hl.Uniform(0.0, 1.0, 2),
            torch.tensor([-1.0, 3.0]),
            ["values from -1 to 3", "[0, 1]", "Uniform(low=0.0, high=1.0, shape=(2,))"],
        ),
    ],
)
def test_values_outside_the_space_are_named_with_the_fix(
    space: hl.Input, value: object, words: list[str]
) -> None:
    net = hl.HyperNet({"scale": space}, {"w": (2,)})
    with pytest.raises(hl.InputError) as error:
        net(scale=value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: hl.Uniform(1.0, 1.0), "low < high"),
        (lambda: hl.Uniform(0.0, float("inf")), "high was inf; expected a finite number"),
        (
            lambda: hl.LogUniform(0.0, 1.0),
            "0 < low < high. For a space that holds zero use Uniform",
        ),
        (lambda: hl.Normal(scale=0.0), "scale above zero"),
        (lambda: hl.Normal(-1), "expected a positive integer or a tuple"),
        (lambda: hl.Normal((2, 0)), "expected a positive integer or a tuple"),
        (lambda: hl.Vector(()), "use Normal() for a scalar"),
        (lambda: hl.Uniform("0", 1.0), "low was '0'; expected a finite number"),
        (lambda: hl.Normal(2, loc=False), "loc was False; expected a finite number"),
        (lambda: hl.Normal(2, loc=float("nan")), "loc was nan; expected a finite number"),
        (lambda: hl.Uniform(0, 10**400), "expected a finite number"),
        (lambda: hl.Uniform(0.0, 1.0, endpoints=1.5), "endpoints=1.5): expected a fraction"),
        (lambda: hl.Simplex(1), "Simplex(size=1): expected an integer, 2 or more"),
        (lambda: hl.Simplex(3, alpha=0.0), "expected alpha above zero"),
        (lambda: hl.Categorical(0), "Categorical(n=0): expected an integer, 1 or more"),
        (lambda: hl.Categorical(2.0), "Categorical(n=2.0): expected an integer, 1 or more"),
        (lambda: hl.Categorical(3, features=1), "(features=1): expected an integer, 2 or more"),
    ],
)
def test_spaces_that_make_no_sense_are_refused(make: object, words: str) -> None:
    with pytest.raises(hl.ConfigurationError) as error:
        make()
    assert words in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_to_float32_is_no_reason_to_refuse(dtype: torch.dtype) -> None:
    inputs = {"g": hl.LogUniform(1e-4, 1.0), "ray": hl.Simplex(3)}
    net = hl.HyperNet(inputs, {"w": (2,)}, dtype=dtype)
    ray = [0.9, 0.05, 0.05]
    expected = net(g=1e-4, ray=ray)["w"]
    for as_is in (np.float32, np.float64):
        given = net(g=np.array(1e-4, as_is), ray=np.array(ray, as_is))["w"]
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)
    cast = {"g": torch.tensor(1e-4).double(), "ray": torch.tensor(ray).double()}
    torch.testing.assert_close(net(**cast)["w"], expected, rtol=1e-5, atol=1e-6)


def test_numbers_in_a_list_keep_their_precision() -> None:
    net = hl.HyperNet({"x": hl.Uniform(0.0, 1.0, 2)}, {"w": (2,)}, dtype=torch.float64)
    exact = torch.tensor([0.1, 0.7], dtype=torch.float64)
    assert torch.equal(net(x=[0.1, 0.7])["w"], net(x=exact)["w"])


def test_a_tiny_end_that_half_precision_rounds_to_zero() -> None:
    space = hl.Uniform(1e-9, 1.0)
    space.check_values(torch.tensor(space.low, dtype=torch.float16))
    with pytest.raises(hl.InputError):
        hl.LogUniform(1e-9, 1.0).check_values(torch.tensor(1e-9, dtype=torch.float16))


def test_a_grid_of_one_point_is_refused() -> None:
    with pytest.raises(hl.InputError, match="expected at least 2"):
        hl.Uniform(0.0, 1.0).grid(1)


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_unstandardize_is_the_inverse(space: hl.Input) -> None:
    value = space.sample((100,), dtype=torch.float64)
    coordinate = space.standardize(value)
    torch.testing.assert_close(space.unstandardize(coordinate), value)
    if space.bounded:
        assert coordinate.min() >= 0
        assert coordinate.max() <= 1


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_a_number_of_draws_is_a_batch_shape(space: hl.Input) -> None:
    def draws(shape: int | tuple[int, ...]) -> torch.Tensor:
        return space.sample(shape, generator=torch.Generator().manual_seed(0))

    assert torch.equal(draws(32), draws((32,)))
    assert torch.equal(draws(np.int64(32)), draws((32,)))
    assert draws(0).shape == (0, *space.event_shape)


@pytest.mark.parametrize("shape", [True, -1, 2.0, "32", (2, False), (2, -1), (2.0,), None])
def test_what_is_no_batch_shape_is_refused(shape: object) -> None:
    words = f"was {shape!r}; expected a number of draws, such as 32, or a tuple"
    model = hl.hypernetize(nn.Linear(2, 1), {"g": hl.Normal()})
    for sample in (hl.Normal().sample, model.sample, model.hypernet.sample):
        with pytest.raises(hl.InputError, match=re.escape(words)):
            sample(shape)


# --- oversampled ends -----------------------------------------------------------


@pytest.mark.parametrize("space", [hl.Uniform(-1.0, 2.0, 2, 0.4), hl.LogUniform(0.1, 10.0, 2, 0.4)])
def test_a_share_of_the_draws_are_ends(space: hl.Input) -> None:
    values = space.sample((20_000,), generator=torch.Generator().manual_seed(0))
    low, high = (torch.tensor(end) for end in space.support)
    at_low, at_high = (torch.isclose(values, end).double().mean().item() for end in (low, high))
    room = 5 * math.sqrt(0.2 * 0.8 / 40_000)
    assert at_low == pytest.approx(0.2, abs=room)
    assert at_high == pytest.approx(0.2, abs=room)
    inner = space.normalize(values)
    inner = inner[(inner > 1e-6) & (inner < 1 - 1e-6)]
    assert inner.mean().item() == pytest.approx(0.5, abs=0.02)


def test_without_endpoints_draws_are_what_they_were() -> None:
    def draw(endpoints: float) -> torch.Tensor:
        space = hl.Uniform(0.0, 1.0, endpoints=endpoints)
        return space.sample((9,), generator=torch.Generator().manual_seed(0))

    assert torch.equal(draw(1.0), draw(0.0).round())
    assert repr(hl.Uniform(0.0, 1.0)) == "Uniform(low=0.0, high=1.0, shape=())"
    assert "endpoints=0.5" in repr(hl.LogUniform(0.1, 1.0, endpoints=0.5))


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (hl.Uniform(0.0, 1.0), ()),
        (hl.LogUniform(0.1, 1.0, shape=2), (2,)),
        (hl.Normal((2, 3)), (2, 3)),
        (hl.Vector(4), (4,)),
        (hl.Categorical(5, shape=2), (2,)),
        (hl.Simplex(3), (3,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_input_says_its_shape(space: hl.Input, shape: tuple[int, ...]) -> None:
    assert space.shape == space.event_shape == shape
    assert space.sample((7,)).shape == (7, *shape)


# --- Vector, measured on data ---------------------------------------------------------------


def test_a_vector_takes_location_and_scale_of_every_entry_from_data() -> None:
    data = torch.randn(500, 2, 2) * torch.tensor([[1e-3, 1.0], [3.0, 0.1]]) + 5.0
    data[:, 0, 0] = 7.0  # never varies
    net = hl.HyperNet({"z": hl.Vector((2, 2))}, {"w": (2,)}, calibrate_on={"z": data})
    space = net.inputs["z"]
    wide = data.double().flatten(1)
    deviation = wide.std(dim=0, correction=0)
    floor = 0.01 * float(deviation.square().mean().sqrt())
    assert space.loc == pytest.approx(wide.mean(dim=0).tolist())
    assert space.scale == pytest.approx([floor, *deviation[1:].tolist()])
    assert repr(space) == f"Vector(shape=(2, 2), loc=(7, ...), scale=({floor:.4g}, ...))"
    coordinate = space.standardize(data)[:, 1]
    assert coordinate.mean(dim=0).tolist() == pytest.approx([0.0, 0.0], abs=1e-4)
    assert coordinate.std(dim=0, correction=0).tolist() == pytest.approx([1.0, 1.0], rel=1e-4)
    drawn = space.sample(2000)[:, 1]
    assert drawn.std(dim=0).tolist() == pytest.approx(deviation[2:].tolist(), rel=0.1)
    torch.testing.assert_close(space.unstandardize(space.standardize(data)), data)


def test_a_measured_vector_is_saved(tmp_path: Path) -> None:
    net = hl.HyperNet({"z": hl.Vector(3)}, {"w": (2,)}, calibrate_on={"z": torch.randn(9, 3)})
    hl.save(net, tmp_path / "m")
    again, z = hl.load(tmp_path / "m"), torch.randn(5, 3)
    assert again.inputs == net.inputs
    assert torch.equal(again(z=z)["w"], net(z=z)["w"])


@one_graph
def test_a_measured_vector_compiles() -> None:
    net = hl.HyperNet({"z": hl.Vector(3)}, {"w": (2,)}, calibrate_on={"z": torch.randn(9, 3)})
    z = torch.randn(5, 3)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z=z)["w"], net(z=z)["w"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: hl.Vector(3, loc=[0.0, 1.0]),
            "Vector(loc=...) had 2 numbers; expected one, or on",
        ),
        (lambda: hl.Vector(2, scale=(1.0, 0.0)), "Vector(scale=0.0): expected a scale above zero"),
        (lambda: hl.Vector(2, loc=(1.0, math.nan)), "loc was nan; expected a finite number"),
        (
            lambda: hl.Vector(2).calibrated(torch.zeros(9, 3)),
            "was given torch.Size([9, 3]) to calibrate on; expected a tensor of shape (N, 2)",
        ),
        (lambda: hl.Vector(2).calibrated([1.0]), "was given list to calibrate on"),
        (lambda: hl.Vector(2).calibrated(torch.zeros(1, 2)), "was given 1 value to calibrate on"),
        (lambda: hl.Vector(2).calibrated(torch.ones(5, 2)), "that are all the same"),
        (lambda: hl.Normal(2).calibrated(torch.randn(5, 2)), "says where its values lie"),
    ],
)
def test_what_cannot_be_measured_is_refused(make: object, words: str) -> None:
    with pytest.raises(hl.ConfigurationError) as error:
        make()
    assert words in str(error.value)


# --- Simplex --------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rays_lie_on_the_simplex_and_follow_the_dirichlet(alpha: float, dtype: torch.dtype) -> None:
    space = hl.Simplex(4, alpha)
    rays = space.sample((20_000,), generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert rays.shape == (20_000, 4)
    assert rays.dtype == dtype
    space.check_values(rays)
    assert rays.double().mean(0).tolist() == pytest.approx([0.25] * 4, abs=0.02)
    variance = 0.25 * 0.75 / (4 * alpha + 1)  # of a Dirichlet's entry
    assert rays.double().var(0).tolist() == pytest.approx([variance] * 4, rel=0.1)


def test_independent_quantiles_are_uniform_on_the_simplex() -> None:
    space = hl.Simplex(3)
    assert torch.allclose(space.quantile(torch.full((3,), 0.5)), torch.full((3,), 1 / 3))
    rays = space.quantile(torch.rand(20_000, 3, dtype=torch.float64))
    assert rays.var(0).tolist() == pytest.approx([2 / 36] * 3, rel=0.1)


@pytest.mark.parametrize(
    ("ray", "words"),
    [
        (torch.tensor([0.5, 0.4, 0.0]), ["sum to 0.9", "a sum of 1", "Divide it by its sum"]),
        (torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.1]]), ["sum to 1.1"]),
        (torch.tensor([1.5, -0.5, 0.0]), ["values from -0.5 to 1.5", "[0, 1]"]),
        (torch.tensor([0.5, math.nan, 0.5]), ["NaN"]),
        (torch.tensor([0.5, 0.5]), ["shape (2,); expected (3,)"]),
        (0.5, ["the number 0.5"]),
    ],
)
def test_rays_off_the_simplex_are_refused(ray: object, words: list[str]) -> None:
    net = hl.HyperNet({"ray": hl.Simplex(3)}, {"w": (2,)})
    with pytest.raises(hl.InputError) as error:
        net(ray=ray)
    for word in words:
        assert word in str(error.value)


# --- blends of categories ---------------------------------------------------------


def naive_blend(table: list[list[float]], weights: list[float]) -> list[float]:
    """The weighted sum of the rows, each brought to norm 1, and brought to norm 1 again."""
    unit = [[entry / math.hypot(*row) for entry in row] for row in table]
    total = [sum(w * row[i] for w, row in zip(weights, unit, strict=True)) for i in range(3)]
    return [entry / math.hypot(*total) for entry in total]


@given(
    rows=st.lists(st.lists(st.floats(0.1, 9.0), min_size=3, max_size=3), min_size=4, max_size=4),
    raw=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4).filter(lambda w: sum(w) > 0.1),
    shape=st.sampled_from([(), (2,)]),
    batch=st.sampled_from([(), (3,), (2, 5)]),
)
def test_a_blend_is_the_direction_of_the_weighted_sum(
    rows: list[list[float]], raw: list[float], shape: tuple[int, ...], batch: tuple[int, ...]
) -> None:
    weights = [w / sum(raw) for w in raw]
    inputs = {"c": hl.Categorical(4, shape, features=3)}
    net = hl.HyperNet(inputs, {"w": (2,)}, dtype=torch.float64, encoding=None)
    with torch.no_grad():
        net.embeddings[0].weight.copy_(torch.tensor(rows))
    table = net.embeddings[0].weight.tolist()
    blend = torch.tensor(weights, dtype=torch.float64).expand(*batch, *shape, 4)
    encoded = net.encode(c=blend)
    expected = torch.tensor(naive_blend(table, weights) * math.prod(shape), dtype=torch.float64)
    torch.testing.assert_close(encoded.detach(), expected.expand(*batch, -1))
    assert net.batch_shape(c=blend) == batch


def test_a_blend_of_one_is_the_category_and_integers_are_untouched() -> None:
    net = hl.HyperNet({"c": hl.Categorical(4), "x": hl.Normal()}, {"w": (3,)})
    alone = net(c=torch.arange(4), x=0.3)["w"]
    torch.testing.assert_close(net(c=torch.eye(4), x=0.3)["w"], alone)
    torch.testing.assert_close(net(c={2: 1.0}, x=0.3)["w"], alone[2])
    # One batch shape decides: whole numbers in a list are categories, fractions are a blend.
    assert torch.equal(net(c=[1, 0, 0, 0], x=0.3)["w"], alone[[1, 0, 0, 0]])
    torch.testing.assert_close(net(c=[1.0, 0, 0, 0], x=0.3)["w"], alone[0])


def test_every_way_to_write_a_blend_gives_the_same() -> None:
    net = hl.HyperNet({"c": hl.Categorical(4)}, {"w": (3,)}, dtype=torch.float64)
    expected = net(c=torch.tensor([0.3, 0.0, 0.0, 0.7], dtype=torch.float64))["w"]
    for value in (
        {0: 0.3, 3: 0.7},
        {3: torch.tensor(0.7, dtype=torch.float64), 0: 0.3},
        [0.3, 0.0, 0.0, 0.7],
        np.array([0.3, 0.0, 0.0, 0.7]),
    ):
        assert torch.equal(net(c=value)["w"], expected)
    t = torch.linspace(0.0, 1.0, 5, dtype=torch.float64, requires_grad=True)
    path = net(c={1: 1 - t, 2: t})["w"]
    assert path.shape == (5, 3)
    torch.testing.assert_close(path[1], net(c={1: 0.75, 2: 0.25})["w"])
    path[2].sum().backward()
    assert t.grad is not None
    assert t.grad.nonzero().tolist() == [[2]]  # each of its own weights
    assert net.embeddings[0].weight.grad[[1, 2]].any(dim=-1).all()
    assert not net.embeddings[0].weight.grad[[0, 3]].any()


def test_the_gradient_of_a_blend_is_that_of_differences() -> None:
    net = hl.HyperNet({"c": hl.Categorical(4, 2)}, {"w": (3,)}, dtype=torch.float64)
    raw = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: net(c=r.softmax(-1))["w"], raw)
    each = torch.func.vmap(lambda r: net(c=r.softmax(-1))["w"])(torch.stack([raw, 2 * raw]))
    torch.testing.assert_close(each[1], net(c=(2 * raw).softmax(-1))["w"])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([0.5, 0.4, 0.0, 0.0], ["'site' was a blend", "sum to 0.9", "Divide them by their sum"]),
        ([1.5, -0.5, 0.0, 0.0], ["weights from -0.5 to 1.5", "not negative and sum to 1"]),
        (torch.tensor([[0.5, 0.5, 0, 0], [0, 1, math.nan, 0]]), ["nan"]),
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), ["sum to 6", "or pass categories as integers"]),
        (torch.ones(2) / 2, ["shape (2,); expected (4,)", "one for each category"]),
        ({0: 0.5, 4: 0.5}, ["was 4; expected categories, integers from 0 to 3"]),
        ({"0": 1.0}, ["was {'0': 1.0}; expected categories and weights, as in {0: 0.3, 1: 0.7}"]),
        ({True: 1.0}, ["expected categories and weights"]),
        ({0: 0.5, 1: 0.1}, ["sum to 0.6"]),
        ({0: "a", 1: 0.1}, ["expected a number for every category"]),
        ({0: torch.ones(2), 1: torch.ones(3)}, ["or tensors of one batch shape"]),
        ({}, ["was {}; expected a number for every category"]),
    ],
)
def test_what_is_no_blend_is_refused(value: object, words: list[str]) -> None:
    net = hl.HyperNet({"site": hl.Categorical(4)}, {"w": (2,)})
    for call in (net, net.check):
        with pytest.raises(hl.InputError) as error:
            call(site=value)
        for word in words:
            assert word in str(error.value)


def test_a_blend_by_names_needs_a_single_category() -> None:
    net = hl.HyperNet({"site": hl.Categorical(4, 2)}, {"w": (2,)})
    with pytest.raises(hl.InputError, match=r"expected a tensor of weights of shape \(2, 4\)"):
        net(site={0: 1.0})


def test_embeddings_that_cancel_have_no_blend() -> None:
    net = hl.HyperNet({"site": hl.Categorical(3, features=2)}, {"w": (2,)})
    with torch.no_grad():
        net.embeddings[0].weight.copy_(torch.tensor([[2.0, 0.0], [-1.0, 1e-9], [0.0, 1.0]]))
    with pytest.raises(hl.InputError, match="'site' was a blend of embeddings that cancel"):
        net(site={0: 0.5, 1: 0.5})
    assert net(site={0: 0.5, 1: 0.499, 2: 0.001})["w"].isfinite().all()
    # Where nothing is read, it is NaN, and so is a blend that does not sum to 1.
    several = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.4, 0.0], [0.5, 0.0, 0.5]])
    found = torch.func.vmap(lambda c: net(site=c)["w"])(several)
    assert found.isnan().all(dim=-1).tolist() == [True, True, False]
    torch.testing.assert_close(found[2], net(site=several[2])["w"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_blends_of_every_precision_are_rounded_not_refused(dtype: torch.dtype) -> None:
    net = hl.HyperNet({"c": hl.Categorical(7)}, {"w": (3,)})
    blends = hl.Simplex(7).sample((50,), generator=torch.Generator().manual_seed(0), dtype=dtype)
    net.inputs["c"].check_values(blends)
    assert net.encode(c=blends).norm(dim=-1).tolist() == pytest.approx([1.0] * 50)


# --- Categorical ----------------------------------------------------------------


def test_categories_are_drawn_evenly() -> None:
    space = hl.Categorical(5, shape=(2,))
    values = space.sample((20_000,), generator=torch.Generator().manual_seed(0))
    assert values.shape == (20_000, 2)
    assert values.dtype == torch.int64
    counts = values.flatten().bincount(minlength=5).double() / 40_000
    assert counts.tolist() == pytest.approx([0.2] * 5, abs=0.01)
    assert space.quantile(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 2, 4]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_a_category_may_be_an_int_or_a_tensor_of_integers(dtype: torch.dtype) -> None:
    net = hl.HyperNet({"site": hl.Categorical(4)}, {"w": (3,)})
    assert torch.equal(net(site=2)["w"], net(site=torch.tensor(2, dtype=dtype))["w"])
    assert not torch.equal(net(site=2)["w"], net(site=1)["w"])
    both = net(site=torch.tensor([2, 1]))["w"]
    torch.testing.assert_close(both, torch.stack([net(site=2)["w"], net(site=1)["w"]]))


@pytest.mark.parametrize("sizes", [(1, 0), (3, 0), (1, 1), (4, 2), (0, 1), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categories_mix_with_numbers_at_norm_1(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    numbers, categories = sizes
    inputs: dict[str, hl.Input] = {}
    if categories:
        inputs["c"] = hl.Categorical(7, shape=(categories,), features=3)
    if numbers:
        inputs["x"] = hl.Normal(numbers)
    net = hl.HyperNet(inputs, {"w": (3,)}, dtype=dtype)
    for parameter in net.embeddings.parameters():
        nn.init.normal_(parameter, std=100.0)  # however the embeddings grow
    encoded = net.encode(**net.sample((20,)))
    assert encoded.shape == (20, 2 * numbers + 3 * categories)
    torch.testing.assert_close(encoded.norm(dim=-1), torch.ones(20, dtype=dtype))
    share = encoded[:, 2 * numbers :].square().sum(-1)
    expected = torch.full((20,), categories / (numbers + categories), dtype=dtype)
    torch.testing.assert_close(share, expected)  # a category counts as one input


@pytest.mark.parametrize("encoding", [hl.CosSin(per_input=True), None], ids=repr)
def test_a_category_has_norm_1_under_other_encodings(encoding: nn.Module | None) -> None:
    inputs = {"c": hl.Categorical(7), "x": hl.Uniform(0.0, 1.0, 3)}
    net = hl.HyperNet(inputs, {"w": (3,)}, encoding=encoding)
    encoded = net.encode(c=3, x=torch.rand(3))
    assert encoded.shape == (6 + 7,)
    assert float(encoded[6:].norm().detach()) == pytest.approx(1.0)


def test_the_embedding_of_a_category_is_learned() -> None:
    model = hl.hypernetize(nn.Linear(2, 2), inputs={"c": hl.Categorical(3), "x": hl.Normal()})
    model(torch.ones(1, 2), c=1, x=0.3).sum().backward()
    gradient = model.hypernet.embeddings[0].weight.grad
    assert gradient[1].any()
    assert not gradient[0].any()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (4, ["was 4; expected categories, integers from 0 to 3", "declare more categories"]),
        (-1, ["was -1"]),
        (1.5, ["was 1.5"]),
        (math.nan, ["was nan"]),
        (math.inf, ["was inf"]),
        (True, ["was True"]),
        (torch.tensor([0, 5]), ["values from 0 to 5", "integers from 0 to 3"]),
        (torch.tensor(1.0), ["shape (); expected (4,)", "integers: convert them with .long()"]),
        (torch.tensor(1j), ["dtype torch.complex64; expected integers"]),
        (torch.tensor(True), ["dtype torch.bool; expected integers"]),
    ],
)
def test_what_is_no_category_is_refused(value: object, words: list[str]) -> None:
    net = hl.HyperNet({"site": hl.Categorical(4)}, {"w": (2,)})
    with pytest.raises(hl.InputError) as error:
        net(site=value)
    for word in words:
        assert word in str(error.value)

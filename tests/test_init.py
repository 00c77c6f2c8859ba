"""Initialisation: what a model starts as, for every scheme and every kind of tensor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import hyperlight as hl

HEADS = {
    "dense": hl.Dense,
    "low rank": lambda: hl.LowRank(2),
    "chunked": lambda: hl.Chunked(256),
    "per layer": hl.PerLayer,
    "per layer, low rank": lambda: hl.PerLayer(rank=2),
    "channel scale": hl.ChannelScale,
}
heads = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())


class Odd(nn.Module):
    """Tensors of every kind: at the root, with unusual names, gains, a scalar, a zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 4, 2)
        self.rnn = nn.GRU(4, 6)
        self.table = nn.Embedding(10, 4)
        self.w = nn.Parameter(torch.randn(30, 20))
        self.temperature = nn.Parameter(torch.tensor(2.5))
        self.gate = nn.Parameter(torch.zeros(7))


def _change(model: hl.HyperModel, draws: int = 512) -> dict[str, torch.Tensor]:
    """The predicted change of every tensor over draws of the inputs."""
    with torch.no_grad():
        gamma = model.sample((draws,), generator=torch.Generator().manual_seed(5))
        theta = model.predict(**gamma)
        return {name: t - model.primary.get_parameter(name) for name, t in theta.items()}


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def _model(init: str | None, **switches: object) -> hl.HyperModel:
    torch.manual_seed(0)
    primary = Odd()
    generator = torch.Generator().manual_seed(0)
    given = {} if init is None else {"init": init}
    space = {"z": hl.Uniform(0.0, 1.0)}
    return hl.hypernetize(primary, space, generator=generator, **given, **switches)


def _same(a: hl.HyperModel, b: hl.HyperModel) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("encoding", [hl.CosSin(), None], ids=repr)
@heads
def test_the_default_is_relative_with_a_residual_and_the_papers_without(
    head: object, encoding: nn.Module | None
) -> None:
    for residual, init in ((True, "relative"), (False, "fan_out")):
        if not residual and not head().stands_alone:
            return
        switches = {"residual": residual, "encoding": encoding}
        default = _model(None, head=head(), **switches)
        assert _same(default, _model("auto", head=head(), **switches))
        assert _same(default, _model(init, head=head(), **switches))
        other = "fan_out" if residual else "relative"
        assert not _same(default, _model(other, head=head(), **switches))


class Plain(hl.Head):
    """A head of a user, without a method ``calibrate``."""

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        total = sum(shape.numel() for shape in self.shapes.values())
        self.weight = nn.Parameter(torch.empty(total, self.features, dtype=dtype, device=device))

    def reset_parameters(
        self, init: hl.Initialization, generator: torch.Generator | None = None
    ) -> None:
        parts = self.weight.split([shape.numel() for shape in self.shapes.values()])
        with torch.no_grad():
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
                part.normal_(0.0, init.std(name, shape), generator=generator)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.weight.T


def test_fan_out_draws_what_the_authors_release_draws() -> None:
    """Release 0.0.5 fills the rows of each tensor on their own: ``_init_output_split``.

    The std of n normal draws has a relative standard error 1 / sqrt(2 n); bound: 5 of both.
    """
    primary = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(32, 10))
    model = hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)}, residual=False, init="fan_out")
    head = model.hypernet.head
    for name, block in zip(
        head.shapes, head.weight.split([s.numel() for s in head.shapes.values()]), strict=True
    ):
        released = torch.empty(block.shape)
        if name.endswith(".bias"):
            nn.init.zeros_(released)
            assert torch.equal(block, released)
            assert not model.predict(g=0.7)[name].any()
        else:
            nn.init.kaiming_normal_(released, mode="fan_out", nonlinearity="leaky_relu")
            room = 5 / block.numel() ** 0.5
            assert float(block.detach().std()) == pytest.approx(float(released.std()), rel=room)


class Biased(nn.Module):
    """Tensors with a name like a bias, and others that are close to one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bilinear = nn.Linear(3, 4), nn.Bilinear(2, 3, 4)
        self.conv, self.up = nn.Conv1d(2, 3, 2), nn.ConvTranspose2d(2, 3, 2)
        self.norm, self.group = nn.LayerNorm((3, 4)), nn.GroupNorm(2, 4)
        self.rnn, self.cell = nn.LSTM(3, 4, bidirectional=True), nn.GRUCell(3, 4)
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.biases = nn.ParameterList([torch.randn(3), torch.randn(4)])
        self.logit_bias = nn.Parameter(torch.randn(()))
        self.bias_table = nn.Parameter(torch.randn(5, 2))
        self.bias_net = nn.Linear(3, 4, bias=False)
        self.token, self.gain = nn.Parameter(torch.randn(3)), nn.Parameter(torch.ones(4))


def test_fan_out_knows_the_biases_of_every_layer() -> None:
    model = hl.hypernetize(Biased(), {"g": hl.Normal(2)}, "*", init="fan_out")
    found = [name for name, change in _change(model, 2).items() if not change.any()]
    assert sorted(found) == sorted(
        [
            *("linear.bias", "bilinear.bias", "conv.bias", "up.bias", "norm.bias", "group.bias"),
            *("rnn.bias_ih_l0", "rnn.bias_hh_l0", "rnn.bias_ih_l0_reverse"),
            *("rnn.bias_hh_l0_reverse", "cell.bias_ih", "cell.bias_hh"),
            *("attention.in_proj_bias", "attention.out_proj.bias"),  # bias_k, bias_v are tokens
            *("biases.0", "biases.1", "logit_bias"),
        ]
    )


@pytest.mark.parametrize("several", [False, True])
def test_a_head_that_cannot_be_calibrated_starts_as_the_paper_says(several: bool) -> None:
    def head() -> object:
        return {"conv*": Plain(), "*": hl.Dense()} if several else Plain()

    assert _same(_model(None, head=head()), _model("fan_out", head=head()))
    with pytest.raises(hl.ConfigurationError, match="Write one, or use init='fan_out'"):
        _model("relative", head=head())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused(value: float) -> None:
    primary = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        primary[1].weight[2, 3] = value
    space = {"z": hl.Uniform(0.0, 1.0)}
    with pytest.raises(
        hl.ConfigurationError,
        match=r"needs the scale of theta0, and '1.weight' holds NaN or infinity. Repair it, leave "
        r"it out with targets=..., or use init='fan_out'.",
    ):
        hl.hypernetize(primary, space)
    assert hl.hypernetize(primary, space, "0.*") is not None
    assert hl.hypernetize(primary, space, init="fan_out") is not None


def test_a_primary_without_values_has_no_scale_to_go_by() -> None:
    with torch.device("meta"):
        primary = nn.Linear(4, 4)
    model = hl.hypernetize(primary, {"z": hl.Uniform(0.0, 1.0)})
    assert all(p.is_meta for p in model.parameters())
    assert model.summary().parameters == sum(p.numel() for p in model.parameters())
    with pytest.raises(hl.ConfigurationError, match="needs the values of theta0"):
        hl.hypernetize(primary, {"z": hl.Uniform(0.0, 1.0)}, init="relative")


@heads
@pytest.mark.parametrize("encoding", [hl.CosSin(), hl.CosSin(per_input=True), None], ids=repr)
@pytest.mark.parametrize("width", [8, 1024])
@pytest.mark.parametrize("dimension", [1, 128])
def test_a_relative_change_is_the_fraction_of_every_tensor(
    dimension: int, width: int, encoding: nn.Module | None, head: object
) -> None:
    torch.manual_seed(dimension + width)
    primary = Odd()
    model = hl.hypernetize(
        primary,
        inputs={"z": hl.Uniform(0.0, 1.0, dimension)},
        targets="*",
        hidden=(16, width),
        encoding=encoding,
        head=head(),
        init=hl.Relative(0.05),
    )
    for name, change in _change(model).items():
        scale = _rms(primary.get_parameter(name))
        if name in ("gate", "norm.bias"):
            assert not change.any()
        elif change.ndim > 2 and head is hl.ChannelScale:
            relative = change / primary.get_parameter(name)
            assert _rms(relative) == pytest.approx(0.05, rel=0.1), name
        else:
            assert _rms(change) == pytest.approx(0.05 * scale, rel=0.1), name


@pytest.mark.parametrize(
    ("space", "low", "high"),
    [
        (hl.Uniform(0.0, 1.0), 0.28, 0.45),
        (hl.Normal(8), 0.24, 0.42),
        (hl.Categorical(10), 0.6, 0.8),
    ],
    ids=repr,
)
def test_how_much_of_a_relative_change_varies_over_draws(
    space: hl.Input, low: float, high: float
) -> None:
    """As the docstring of ``Relative`` has it. A seed is off by up to 0.1, their mean by 0.04."""
    for directions in (None, 16):
        ratios = []
        for seed in range(10):
            torch.manual_seed(seed)
            model = hl.hypernetize(nn.Linear(32, 32), {"z": space}, directions=directions)
            change = _change(model, 2000)["weight"]
            assert _rms(change) == pytest.approx(0.1 * _rms(model.primary.weight), rel=0.1)
            ratios.append(_rms(change - change.mean(dim=0)) / _rms(change))
        assert low < sum(ratios) / len(ratios) < high


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu", "sigmoid"])
def test_a_relative_change_does_not_depend_on_the_activation(activation: str) -> None:
    model = hl.hypernetize(
        nn.Linear(32, 32),
        inputs={"z": hl.Uniform(0.0, 1.0, 4)},
        activation=activation,
        init="relative",
    )
    change = _change(model)["weight"]
    assert _rms(change) == pytest.approx(0.1 * _rms(model.primary.weight), rel=0.1)


def test_relative_without_residual_gives_weights_of_the_primarys_scale() -> None:
    primary = nn.Linear(64, 32)
    model = hl.hypernetize(
        primary, inputs={"z": hl.Normal(8)}, residual=False, init=hl.Relative(1.0)
    )
    assert not model.primary.weight.any()
    assert _rms(_change(model)["weight"]) == pytest.approx(_rms(primary.weight), rel=0.1)


@heads
def test_a_pretrained_primary_is_bit_exact_with_zero_and_then_learns(head: object) -> None:
    torch.manual_seed(0)
    primary = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 30))
    model = hl.hypernetize(primary, inputs={"z": hl.Normal(32)}, head=head(), init="zero")
    x = torch.randn(4, 3, 8, 8)
    for _ in range(3):
        assert torch.equal(model(x, **model.sample()), primary(x))
    for name in ("hypernet", "primary"):  # also where theta0 is frozen
        for parameter in model.primary.parameters():
            parameter.requires_grad_(name == "primary")
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            model(x, **model.sample()).square().sum().backward()
            optimizer.step()
        z = torch.randn(2, 32)
        both = model.predict(z=z)
        assert any(not torch.equal(t[0], t[1]) for t in both.values())


def test_hyperfan_counts_the_fans_of_the_layer() -> None:
    primary = Odd()
    for init, expected in {
        "hyperfan_in": {
            "conv.weight": 1 / (2 * 8 * 9),
            "conv.bias": 1 / 2,
            "up.weight": 1 / (2 * 16 * 4),
            "rnn.weight_ih_l0": 1 / (2 * 4),
            "table.weight": 1.0,
            "w": 1 / (2 * 20),  # with temperature and gate, vectors of the same module
        },
        "hyperfan_out": {
            "conv.weight": 1 / (16 * 9),
            "conv.bias": 1 - 8 / 16,
            "up.weight": 1 / (4 * 4),
            "up.bias": 0.0,
            "table.weight": 1 / 4,
        },
    }.items():
        found = {name: [] for name in expected}
        for seed in range(10):
            model = hl.hypernetize(
                primary,
                inputs={"z": hl.Normal(8)},
                residual=False,
                init=init,
                generator=torch.Generator().manual_seed(seed),
            )
            for name, change in _change(model, 64).items():
                if name in found:
                    found[name].append(_rms(change) ** 2)
        for name, variances in found.items():
            mean = sum(variances) / len(variances)
            assert mean == pytest.approx(expected[name], rel=0.15, abs=1e-12), (init, name)


def test_hyperfan_in_without_a_predicted_bias_is_not_halved() -> None:
    model = hl.hypernetize(
        nn.Linear(50, 50), inputs={"z": hl.Normal(8)}, targets="weight", init="hyperfan_in"
    )
    assert _rms(_change(model)["weight"]) == pytest.approx(50**-0.5, rel=0.1)


def test_a_function_of_name_and_shape() -> None:
    seen = []

    def std(name: str, shape: torch.Size) -> float:
        seen.append((name, shape))
        return 0.25 if name == "weight" else 0.0

    model = hl.hypernetize(
        nn.Linear(40, 50), inputs={"z": hl.Normal(128)}, hidden=(16, 128), init=std
    )
    assert seen == [("weight", (50, 40)), ("bias", (50,))]
    change = _change(model)
    assert _rms(change["weight"]) == pytest.approx(0.25, rel=0.2)
    assert not change["bias"].any()


def test_no_draw_comes_from_the_global_generator_of_a_measured_start() -> None:
    def after(init: str) -> torch.Tensor:
        torch.manual_seed(0)
        hl.hypernetize(nn.Linear(3, 3), inputs={"z": hl.Normal()}, init=init)
        return torch.rand(1)

    assert torch.equal(after("relative"), after("hyperfan_in"))


def test_reset_parameters_draws_as_construction_does() -> None:
    def make() -> hl.HyperNet:
        inputs = {"z": hl.Normal(2), "c": hl.Categorical(3)}
        return hl.HyperNet(inputs, {"w": (5, 4)}, generator=torch.Generator().manual_seed(1))

    first, second = make(), make()
    nn.init.ones_(second.head.weight)
    second.reset_parameters(generator=torch.Generator().manual_seed(1))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_on_the_meta_device_nothing_is_drawn() -> None:
    state = torch.get_rng_state()
    net = hl.HyperNet({"z": hl.Normal()}, {"w": (10**6, 10**4)}, device="meta", init="hyperfan_in")
    assert torch.equal(torch.get_rng_state(), state)
    assert net.head.weight.shape == (10**10, 16)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: hl.Relative(-1.0), "Relative(fraction=-1.0): expected a fraction"),
        (lambda: hl.Relative(math.nan), "expected a fraction of the scale of theta0"),
        (
            lambda: hl.HyperNet({"z": hl.Normal()}, {"w": (2,)}, init="relative"),
            "init='relative' needs the scale of theta0, and there is none for 'w'. Use hypernetize",
        ),
        (
            lambda: hl.HyperNet({"z": hl.Normal()}, {"w": (2,)}, init="fanout"),
            "init was 'fanout'; expected one of 'fan_out', 'zero', 'relative', 'hyperfan_in', "
            "'hyperfan_out', an object such as hl.Relative(0.1)",
        ),
        (
            lambda: hl.HyperNet({"z": hl.Normal()}, {"w": (2,)}, init=hl.Relative),
            "init was the class Relative; expected Relative()",
        ),
        (
            lambda: hl.hypernetize(
                nn.Linear(2, 2, device="meta"), inputs={"z": hl.Normal()}, init="relative"
            ),
            "'weight' is on the meta device. Use init='zero'",
        ),
    ],
)
def test_initialisations_that_cannot_be_are_refused(make: object, words: str) -> None:
    with pytest.raises(hl.ConfigurationError) as error:
        make()
    assert words in str(error.value)

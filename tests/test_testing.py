"""The conformance checks: content with all of ours, and each finds what it is there for."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hyperlight as hl
from hyperlight.init import Initialization
from hyperlight.testing import CheckError, CheckReport, check_hypernet
from tests.models import PRIMARIES, mlp, vectors

NUMBERS: dict[str, hl.Input] = {"g": hl.Uniform(0.0, 2.0), "z": hl.Normal(3)}
SPACES: dict[str, dict[str, hl.Input]] = {
    "numbers": NUMBERS,
    "one": {"g": hl.LogUniform(1e-4, 1.0)},
    "shapes": {"a": hl.Uniform(-1.0, 1.0, (2, 2)), "v": hl.Vector(3, loc=2.0, scale=0.1)},
    "simplex": {"s": hl.Simplex(3), "g": hl.Uniform(0.0, 1.0)},
    "categories": {"c": hl.Categorical(3), "d": hl.Categorical(4, (2,))},
    "mixed": {"c": hl.Categorical(3), "g": hl.Uniform(0.0, 1.0)},
}
HEADS: dict[str, Any] = {
    "dense": hl.Dense(),
    "low rank": hl.LowRank(1),
    "chunked": hl.Chunked(7),
    "per layer": hl.PerLayer(3, 5),
    "per layer, low rank": hl.PerLayer(3, 5, rank=1),
    "channel scale": hl.ChannelScale(),
    "mixed": {"*bias": hl.Dense(), "0.*": hl.LowRank(1), "*": hl.Chunked(4)},
}
ENCODINGS: dict[str, nn.Module | None] = {
    "unit norm": hl.CosSin(),
    "per input": hl.CosSin(per_input=True),
    "none": None,
}
CHECKS = list(hl.testing._CHECKS)


def built(inputs: dict[str, hl.Input] = NUMBERS, **settings: Any) -> hl.HyperModel:
    return hl.hypernetize(mlp(), inputs, **settings)


# --- ours -------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_head_encoding_and_input_of_ours_passes(space: str, head: str, encoding: str) -> None:
    model = built(SPACES[space], head=HEADS[head], encoding=ENCODINGS[encoding])
    report = check_hypernet(model, vectors())
    skipped = {"encoding"} if space == "categories" else set()
    assert set(report.skipped) == skipped
    assert list(report.passed) == [name for name in CHECKS if name not in skipped]


@pytest.mark.parametrize("init", ["fan_out", "zero", "relative", "hyperfan_in", "hyperfan_out"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("head", ["dense", "low rank", "per layer", "channel scale"])
def test_every_initialisation_and_formulation_passes(head: str, init: str, residual: bool) -> None:
    if not residual and (init in ("zero", "relative") or head == "channel scale"):
        return  # refused, or the zero primary has no scale: nothing that could be checked
    model = built(head=HEADS[head], init=init, residual=residual)
    assert not check_hypernet(model, vectors()).skipped


@pytest.mark.parametrize("name", sorted(set(PRIMARIES) - {"old weight norm"}))
def test_every_primary_passes(name: str) -> None:
    make, data = PRIMARIES[name]
    report = check_hypernet(hl.hypernetize(make(), NUMBERS), data())
    assert list(report.passed) == CHECKS
    assert "sets: " in report.passed["samples"]
    alone = "of the hypernetwork alone, since the primary cannot be"
    assert report.passed["pickle"].startswith(alone) is (name == "weight norm")


@pytest.mark.parametrize("head", ["dense", "low rank", "chunked"])
def test_biases_alone_pass(head: str) -> None:
    """Under ``fan_out`` they start at zero, which is no sign of a head that ignores its draws."""
    model = hl.hypernetize(mlp(), NUMBERS, "*.bias", head=HEADS[head], init="fan_out")
    assert not check_hypernet(model, vectors()).skipped


def test_a_model_that_cannot_be_copied_is_told_why() -> None:
    """PyTorch's deprecated weight_norm keeps a tensor with a graph, which it refuses to copy."""
    make, data = PRIMARIES["old weight norm"]
    with pytest.raises(
        CheckError, match="deepcopy of the model raised .* no other was made"
    ) as caught:
        check_hypernet(hl.hypernetize(make(), NUMBERS), data())
    assert list(caught.value.failures) == ["copies"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("space", SPACES)
def test_every_dtype_passes(dtype: torch.dtype, space: str) -> None:
    model = hl.hypernetize(mlp().to(dtype), SPACES[space], activation="tanh")
    assert "binding" in check_hypernet(model, vectors().to(dtype)).passed


@pytest.mark.parametrize("hidden", [(), (1,), (7, 7)])
@pytest.mark.parametrize("head", HEADS)
def test_every_trunk_passes(hidden: tuple[int, ...], head: str) -> None:
    check_hypernet(built(head=HEADS[head], hidden=hidden, activation="gelu", skip=True))


def test_hypernetworks_of_hypernetworks_pass() -> None:
    inner = hl.HyperNet({"a": hl.Uniform(0.0, 1.0)}, {"w": (2, 3)}, hidden=(4,))
    model = hl.hypernetize(inner, {"b": hl.Uniform(0.0, 1.0)})
    report = check_hypernet(model, a=0.5)
    assert list(report.skipped) == ["samples"]
    assert list(report.passed) == [name for name in CHECKS if name != "samples"]


def test_a_hypernet_alone_passes() -> None:
    net = hl.HyperNet(NUMBERS, {"w": (3, 2), "scalar": ()})
    report = check_hypernet(net)
    wanted = ("binding", "samples", "primary")
    assert report.skipped == dict.fromkeys(wanted, "a HyperNet has no primary")


class Threefold(nn.Module):
    """Takes keywords, and gives what is nested."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, *, twice: bool) -> dict[str, Any]:
        y = self.linear(x)
        return {"y": self.linear(y) if twice else y, "more": [(y.argmax(-1),)], "text": "x"}


def test_arguments_are_those_of_a_call_of_the_model() -> None:
    model = hl.hypernetize(Threefold(), NUMBERS)
    report = check_hypernet(model, vectors(), twice=True, g=0.5)
    assert report.passed["binding"] == ""
    with pytest.raises(CheckError, match="missing 1 required keyword-only argument: 'twice'"):
        check_hypernet(model, vectors())
    with pytest.raises(CheckError, match="Hypernetwork input 'g' was 9"):
        check_hypernet(model, vectors(), twice=True, g=9.0)
    assert check_hypernet(model).passed["binding"].startswith("weights only: pass what forward")


def test_frozen_parameters_need_no_gradient() -> None:
    model = built()
    model.primary.requires_grad_(False)
    check_hypernet(model, vectors())
    report = check_hypernet(model.requires_grad_(False), vectors())
    assert report.skipped["gradients"] == "no parameter requires a gradient"


def test_the_model_and_the_random_numbers_are_left_as_they_were() -> None:
    primary = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model = hl.hypernetize(primary, NUMBERS)
    x, state, random = vectors(), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        report = check_hypernet(model, x)
    assert list(report.passed) == CHECKS
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_report_prints_as_a_list() -> None:
    report = CheckReport({"norm": "1 for all inputs, as claimed", "batches": ""}, {"binding": "no"})
    assert str(report) == (
        "norm     passed: 1 for all inputs, as claimed\nbatches  passed\nbinding  skipped: no"
    )


def test_norms_that_are_not_claimed_are_reported() -> None:
    found = check_hypernet(built({"g": hl.Uniform(0.0, 2.0)}, encoding=None)).passed["norm"]
    assert found == "norms from 0 to 2; none is claimed"
    assert check_hypernet(built()).passed["norm"] == "1 for all inputs, as claimed"


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), None, hl.Dense()])
def test_what_is_no_hypernetwork_is_refused(thing: Any) -> None:
    with pytest.raises(hl.ConfigurationError, match="expected a HyperModel, as hypernetize"):
        check_hypernet(thing)


def test_arguments_for_a_hypernet_alone_are_refused() -> None:
    with pytest.raises(hl.ConfigurationError, match="which has no primary"):
        check_hypernet(hl.HyperNet(NUMBERS, {"w": (2,)}), vectors())


# --- a user's, right and wrong ----------------------------------------------


class Own(hl.Head):
    """A right head, which the wrong ones below each change in one place."""

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        total = sum(shape.numel() for shape in self.shapes.values())
        self.weight = nn.Parameter(torch.empty(total, self.features, dtype=dtype, device=device))

    @torch.no_grad()
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        rows = self.weight.split([shape.numel() for shape in self.shapes.values()])
        for (name, shape), block in zip(self.shapes.items(), rows, strict=True):
            block.normal_(0.0, init.std(name, shape), generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight)


def test_a_users_head_passes() -> None:
    report = check_hypernet(built(head=Own()), vectors())
    assert list(report.passed) == CHECKS
    assert "has no calibrate()" in report.passed["initialisation"]


class NoBatch(Own):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) - super().forward(features).mean()


class Squeezed(Own):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.reshape(-1, self.features)).squeeze(0)


class Renamed(Own):
    def predict(self, features: Tensor) -> dict[str, Tensor]:
        return dict(reversed(super().predict(features).items()))


class Transposed(Own):
    def predict(self, features: Tensor) -> dict[str, Tensor]:
        return {name: t.mT if t.ndim > 1 else t for name, t in super().predict(features).items()}


class WrongDtype(Own):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).double()


class Infinite(Own):
    def forward(self, features: Tensor) -> Tensor:
        flat = super().forward(features)
        return flat + torch.full_like(flat, torch.inf)


class Miscounted(Own):
    def parameter_count(self, name: str) -> int:
        return self.shapes[name].numel()


class OtherSum(Own):
    def add_to(self, theta0: Any, features: Tensor) -> dict[str, Tensor]:
        return {name: theta0[name] + 2.0 * t for name, t in self.predict(features).items()}


class OwnPlacement(Own):
    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        super().make(torch.float64, device)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight.to(features.dtype))


class Deaf(Own):
    def forward(self, features: Tensor) -> Tensor:
        flat = super().forward(features)
        constant = super().forward(torch.ones_like(features))
        return torch.cat([constant[..., :1].expand_as(flat[..., :15]), flat[..., 15:]], dim=-1)


class Detached(Own):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.detach())


class Spare(Own):
    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        super().make(dtype, device)
        self.spare = nn.Parameter(torch.zeros(2, dtype=dtype, device=device))


class InfiniteGradient(Own):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) + (features.sum(-1, keepdim=True) * 0.0).sqrt()


class FixedSpread(Own):
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        nn.init.normal_(self.weight, std=0.5, generator=generator)


class NeverZero(Own):
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        super().reset_parameters(init, generator)
        with torch.no_grad():
            self.weight.add_(1e-6)


class DeadAtZero(Own):
    """The spread as a factor that starts at zero together with what it multiplies."""

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        super().make(dtype, device)
        self.gain = nn.Parameter(torch.empty((), dtype=dtype, device=device))

    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        super().reset_parameters(init, generator)
        with torch.no_grad():
            self.gain.fill_(float(self.weight.any()))

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) * self.gain


class WrongCalibration(Own):
    def calibrate(self, features: Tensor, init: Initialization) -> None:
        pass


class Unseeded(Own):
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        super().reset_parameters(init)


class SeededItself(Own):
    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        device = self.weight.device
        super().reset_parameters(init, torch.Generator(device).manual_seed(0))


class HalfReset(Spare):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) + 0.0 * self.spare.sum() ** 2


class SharedCopies(Own):
    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        if not self.features:
            return type(self)()
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made


class Unpicklable(Own):
    """Holds what cannot be sent to another process."""

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("holds a socket")

    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        made = object.__new__(type(self))
        made.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        return made


class Loose(Own):
    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        super().make(dtype, device)
        self.signs = torch.ones(self.features, dtype=dtype, device=device)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features * self.signs.to(features.dtype))


class Unsaved(Own):
    """Its fixed random signs, drawn with the weights, are not saved with them."""

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        super().make(dtype, device)
        signs = torch.empty(self.features, dtype=dtype, device=device)
        self.register_buffer("signs", signs, persistent=False)

    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        super().reset_parameters(init, generator)
        with torch.no_grad():
            self.signs.bernoulli_(0.5, generator=generator).mul_(2.0).sub_(1.0)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features * self.signs)


class SinglePrecision(Own):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).float()


class Halved(Own):
    def forward(self, features: Tensor) -> Tensor:
        halved = features.half().to(features.dtype)
        return super().forward(features if features.dtype == torch.float64 else halved)


class Noisy(Own):
    def forward(self, features: Tensor) -> Tensor:
        flat = super().forward(features)
        return flat + 0.1 * torch.randn_like(flat)


class Raising(Own):
    def predict(self, features: Tensor) -> dict[str, Tensor]:
        if features.ndim > 2:
            raise RuntimeError("only matrices\nand a second line")
        return super().predict(features)


def expect_failure(model: Any, check: str, words: str, *args: Any) -> CheckError:
    with pytest.raises(CheckError) as caught:
        check_hypernet(model, *args)
    assert check in caught.value.failures
    assert re.search(words, caught.value.failures[check]), caught.value.failures[check]
    assert f"\n- {check}: {caught.value.failures[check]}" in str(caught.value)
    return caught.value


WRONG_HEADS: list[tuple[Any, str, str]] = [
    (NoBatch, "batches", "must equal the loop over it, and they differ for '0.weight'"),
    (Squeezed, "batches", r"for batch shape \(1,\); expected \(1, 5, 3\)\. Work on the last"),
    (Raising, "batches", "it raised RuntimeError: only matrices\\."),
    (Renamed, "predictions", "The head's forward and predict|in this order"),
    (Transposed, "predictions", r"'0.weight' has shape \(3, 5\) .* expected \(5, 3\)\. Follow"),
    (WrongDtype, "predictions", "is torch.float64 on cpu; expected torch.float32 on cpu"),
    (Infinite, "predictions", "infinite values or NaN; expected finite"),
    (Miscounted, "predictions", "adds up to 32 over all tensors, and the head has 512"),
    (OtherSum, "predictions", "add_to.. and predict.. differ for '0.weight'"),
    (OwnPlacement, "predictions", "'head.weight' is torch.float64 on cpu; expected torch.f"),
    (Deaf, "dependence", "The prediction of '0.weight' is the same for all values of"),
    (Detached, "gradients", "'hypernet.trunk.layers.0.weight', .* is zero whatever the inputs"),
    (Spare, "gradients", "'hypernet.head.spare' is zero whatever the inputs; expected every"),
    (InfiniteGradient, "gradients", "has infinite values or NaN; expected finite"),
    (FixedSpread, "initialisation", "After reset_parameters the predictions of '0.*asked for"),
    (NeverZero, "initialisation", "init='zero' predictions must be exactly zero"),
    (DeadAtZero, "initialisation", "no parameter of the head is given a gradient"),
    (
        WrongCalibration,
        "initialisation",
        "After calibrate the predictions of '0.(weight|bias)' have",
    ),
    (Unseeded, "reset", "with the same generator gave two values of 'weight'"),
    (SeededItself, "reset", "the same with two generators; expected two draws"),
    (HalfReset, "reset", "gave two values of 'spare'; expected one. Set every parameter"),
    (SharedCopies, "copies", "shares 1 parameters with the model; expected none"),
    (Unpicklable, "pickle", "The model cannot be pickled .*holds a socket.*; expected that it can"),
    (Loose, "state", "head keeps the tensors 'signs' as plain attributes, which are not saved"),
    (Unsaved, "state", "After load_state_dict.* must predict the same; they differ for '0.weight'"),
    (
        SinglePrecision,
        "precision",
        "model.to.torch.float64., is torch.float32 .* expected torch.float64",
    ),
    (Halved, "precision", "must change predictions by rounding only; they differ for"),
    (Noisy, "determinism", "the same inputs must give the same weights, and two calls differ"),
]


@pytest.mark.parametrize(("head", "check", "words"), WRONG_HEADS)
def test_what_is_wrong_with_a_head_is_found_by_name(
    head: Callable[[], hl.Head], check: str, words: str
) -> None:
    """On a HyperNet, whose predictions nothing of the primary hides."""
    shapes = {name: p.shape for name, p in mlp().named_parameters()}
    expect_failure(hl.HyperNet(NUMBERS, shapes, head=head()), check, words)


def test_every_failure_is_listed() -> None:
    shapes = {name: p.shape for name, p in mlp().named_parameters()}
    error = expect_failure(
        hl.HyperNet(NUMBERS, shapes, head=Noisy()),
        "batches",
        "they differ for '0.weight' by more than rounding",
    )
    assert {"batches", "copies", "state", "determinism"} <= set(error.failures)
    assert str(error).startswith(
        f"check_hypernet: HyperNet (encoding CosSin, head Noisy) failed {len(error.failures)} of "
        f"{len(CHECKS)} checks:\n- "
    )
    assert isinstance(error, AssertionError)
    assert isinstance(error, hl.HyperLightError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.failures) == (str(error), error.failures)


class Pair(hl.Encoding):
    """A right encoding, which the wrong ones below each change in one place."""

    def output_size(self, inputs: int) -> int:
        return 2 * inputs

    def forward(self, u: Tensor) -> Tensor:
        return torch.cat([u, 1.0 - u], dim=-1)


def test_a_users_encoding_passes() -> None:
    report = check_hypernet(built(encoding=Pair()), vectors())
    assert list(report.passed) == CHECKS
    assert "none is claimed" in report.passed["norm"]
    check_hypernet(built(encoding=nn.Linear(4, 3)), vectors())


class Boast(Pair):
    unit_norm = True


class Longer(Pair):
    def output_size(self, inputs: int) -> int:
        return 3 * inputs


class Mixing(Pair):
    def forward(self, u: Tensor) -> Tensor:
        return super().forward(u.reshape(-1, u.shape[-1]))


class Logarithm(Pair):
    def forward(self, u: Tensor) -> Tensor:
        return super().forward(u.log())


class Partial(Pair):
    def forward(self, u: Tensor) -> Tensor:
        return super().forward(u * torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=u.dtype))


class Stochastic(Pair):
    def forward(self, u: Tensor) -> Tensor:
        return super().forward(u + torch.rand_like(u))


class Unlearned(nn.Linear):
    def forward(self, u: Tensor) -> Tensor:
        return F.linear(u, self.weight.detach(), self.bias)


class Cancelled(Pair):
    """Its gain is divided by itself, which leaves a gradient that is rounding alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((4,), 0.3))

    def forward(self, u: Tensor) -> Tensor:
        return super().forward(u * (self.gain / self.gain.square().sqrt()))


WRONG_ENCODINGS: list[tuple[Any, str, str]] = [
    (Boast(), "norm", "unit_norm is claimed, and encoded inputs have norms from .* expected 1"),
    (
        Longer(),
        "encoding",
        r"of 4 inputs has shape \(8,\) for batch .* expected \(12,\)\. Correct out",
    ),
    (Mixing(), "encoding", r"has shape \(1, 8\) for batch shape \(\); expected \(8,\)\. .* join"),
    (Logarithm(), "encoding", "the ends, has infinite values or NaN; expected finite"),
    (Partial(), "dependence", "'0.weight' is the same for all values of the input 'last'"),
    (Stochastic(), "determinism", "two calls differ"),
    (Cancelled(), "gradients", "The gradient of 'hypernet.encoding.gain' is zero whatever the in"),
    (Unlearned(4, 3), "gradients", "The gradient of 'hypernet.encoding.weight' is zero"),
]


@pytest.mark.parametrize(("encoding", "check", "words"), WRONG_ENCODINGS)
def test_what_is_wrong_with_an_encoding_is_found_by_name(
    encoding: nn.Module, check: str, words: str
) -> None:
    inputs = {"g": hl.Uniform(0.0, 2.0, 3), "last": hl.Uniform(0.0, 2.0)}
    shapes = {name: p.shape for name, p in mlp().named_parameters()}
    expect_failure(hl.HyperNet(inputs, shapes, encoding=encoding), check, words)


class Swapped(hl.HyperNet):
    """Gives raw values where normalised ones are wanted, and the reverse."""

    def encode(self, **gamma: Any) -> Tensor:
        (space,), (value,) = self.inputs.values(), gamma.values()
        value = value if self.encoding.normalized else space.normalize(value)
        return self.encoding(value[..., None])


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        (hl.CosSin(), "normalized is True, so it must be given inputs mapped to"),
        (None, "normalized is False, so it must be given inputs as the user passes them"),
    ],
)
def test_an_encoding_that_is_given_the_wrong_values_is_found(
    encoding: nn.Module | None, words: str
) -> None:
    net = Swapped({"g": hl.Uniform(0.0, 9.0)}, {"w": (2,)}, encoding=encoding)
    expect_failure(net, "encoding", words)


@dataclass(frozen=True)
class Angle(hl.Input):
    """A right input, which the wrong ones below each change in one place."""

    shape: tuple[int, ...] = ()

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, 360.0

    def standardize(self, value: Tensor) -> Tensor:
        return value / 360.0

    def unstandardize(self, coordinate: Tensor) -> Tensor:
        return coordinate * 360.0

    def quantile(self, p: Tensor) -> Tensor:
        return self.unstandardize(p)


def test_a_users_input_passes() -> None:
    assert list(check_hypernet(built({"angle": Angle()}), vectors()).passed) == CHECKS


class Radians(Angle):
    def standardize(self, value: Tensor) -> Tensor:
        return value * math.pi / 180.0


class Outside(Angle):
    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().sample(*args, **kwargs) + 361.0


class Flat(Angle):
    def sample(self, batch_shape: Any = (), **kwargs: Any) -> Tensor:
        return super().sample((math.prod(batch_shape),), **kwargs)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Radians(), r"normalize\(\) of 'g' gave values from .* expected \[0, 1\]"),
        (Outside(), "expected values in .0, 360.,"),
        (Flat(), r"A draw of 'g' has shape \(1,\) for batch shape \(\); expected \(\)\. Correct"),
    ],
)
def test_what_is_wrong_with_an_input_is_found_by_name(space: hl.Input, words: str) -> None:
    expect_failure(hl.HyperNet({"g": space}, {"w": (2,)}), "inputs", words)


class Looks(nn.Module):
    """Takes a predicted weight for something else, since it is no nn.Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if isinstance(self.linear.weight, nn.Parameter) else x


class Decays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gain = nn.Linear(3, 3), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.gain.data.mul_(0.5)
        return self.linear(x) * self.gain.detach().clone()


class Dice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.rand_like(x)


WRONG_PRIMARIES: list[tuple[Any, str, str]] = [
    (
        Looks,
        "binding",
        r"bind\(...\) must give the outputs of a copy .* they differ for 'output 0'",
    ),
    (Decays, "primary", "changed 'gain' of the primary; expected nothing to change"),
    (Dice, "determinism", "two calls of the model must give the same outputs, and they differ"),
]


@pytest.mark.parametrize(("primary", "check", "words"), WRONG_PRIMARIES)
def test_what_is_wrong_with_a_primary_is_found_by_name(
    primary: Callable[[], nn.Module], check: str, words: str
) -> None:
    model = hl.hypernetize(primary(), NUMBERS, "linear.*")
    error = expect_failure(model, check, words, vectors())
    # A network with one set per sample shows theta0 where one with a single set shows a tensor.
    more = ["samples"] if primary is Looks else []
    assert check == "primary" or list(error.failures) == [check, *more]


class Drifting(hl.HyperModel):
    """Binds other weights than it predicts."""

    def bind(self, **gamma: Any) -> Any:
        theta = {name: 2.0 * t for name, t in self.predict(**gamma).items()}
        return hl.bind(self.primary, theta)


class Detaching(hl.HyperModel):
    """Keeps theta0 from training."""

    def predict(self, **gamma: Any) -> dict[str, Tensor]:
        delta = self.hypernet(**gamma)
        own = dict(self.primary.named_parameters())
        return {name: own[name].detach() + delta[name] for name in own}


WRONG_MODELS: list[tuple[Any, str, str]] = [
    (Drifting, "binding", "holds another tensor at '0.weight' than predict"),
    (Detaching, "gradients", "The gradient of 'primary.0.weight', .* is zero"),
]


@pytest.mark.parametrize(("kind", "check", "words"), WRONG_MODELS)
def test_what_is_wrong_with_a_model_is_found_by_name(
    kind: type[hl.HyperModel], check: str, words: str
) -> None:
    model = built()
    error = expect_failure(kind(model.primary, model.hypernet), check, words)
    assert list(error.failures) == [check]


def test_a_class_that_pickle_cannot_find_is_reported_and_no_failure() -> None:
    class Local(Own):
        pass

    report = check_hypernet(built(head=Local()), vectors())
    assert "by name only, in a module" in report.skipped["pickle"]


# --- one set of weights per sample ------------------------------------------


class Centred(nn.Module):
    """Looks at the whole batch after its last layer, which is not what single sets do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y - y.mean(0)


class Exchanged(hl.HyperModel):
    """Gives every sample the weights of another."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for name, space in self.inputs.items():
            if kwargs[name].ndim > len(space.event_shape):
                kwargs[name] = kwargs[name].flip(0)
        return super().forward(*args, **kwargs)


class Stopped(hl.HyperModel):
    """Right outputs, with gradients for the first sample alone."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y = super().forward(*args, **kwargs)
        return torch.cat([y[:1], y[1:].detach()])


@pytest.mark.parametrize("kind", [Exchanged, Stopped])
def test_samples_with_weights_of_others_are_found(kind: type[hl.HyperModel]) -> None:
    words = "With one set of weights per sample .4 sets: once on the whole batch. the model must"
    if kind is Stopped:
        words += ".*They differ, in the gradient for"
    model = kind(mlp(), built().hypernet)
    error = expect_failure(model, "samples", words, vectors())
    assert list(error.failures) == ["samples"]


def test_what_looks_at_the_whole_batch_is_told_apart() -> None:
    model = hl.hypernetize(Centred(), NUMBERS)
    words = "makes of the whole batch after its last predicted layer is no fault"
    expect_failure(model, "samples", words, vectors())


class Turned(Centred):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flip(0)).flip(0)


class Masked(Centred):
    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x) * mask, mask


def test_the_report_says_how_samples_ran() -> None:
    x = torch.randn(6, 5, 3)
    cases: list[tuple[nn.Module, tuple[Any, ...], str]] = [
        (nn.Linear(3, 2), (x,), "4 sets: once on the whole batch"),
        (nn.GRU(3, 2, batch_first=True), (x,), "4 sets: "),
        (nn.GRU(3, 2), (hl.PerSample(x, dim=1),), "4 sets: "),
        (Turned(), (x[:3],), "3 sets: every sample by itself, under torch.vmap, since "),
        (Masked(), (x, hl.Shared(torch.ones(5, 2))), "4 sets: once on the whole batch"),
    ]
    for primary, args, words in cases:
        found = check_hypernet(hl.hypernetize(primary, NUMBERS), *args).passed["samples"]
        assert found.startswith(words), (primary, found)


class Norm(Centred):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).norm()


class Thing:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class Reads(nn.Linear):
    def forward(self, thing: Thing) -> Tensor:
        return super().forward(thing.x)


def test_the_report_says_why_samples_were_not_compared() -> None:
    x, statistics = vectors(), nn.BatchNorm1d(3, track_running_stats=False)
    cases: list[tuple[nn.Module, tuple[Any, ...], str]] = [
        (nn.Linear(3, 2), (), "pass what forward takes, with a batch of two or more"),
        (nn.Linear(3, 2), (x[:1],), "the batch has one sample; pass two or more"),
        (Masked(), (x, x[0, :2]), "arguments hold 2 and 4 samples; pass a batch, and wrap"),
        (Norm(), (x,), "forward returns no tensor with an entry for every sample"),
        (Reads(3, 2), (Thing(x),), "an argument is of class Thing, which the check cannot split"),
        (nn.Sequential(nn.Linear(3, 3), statistics), (x,), "the model refuses it: InputError: "),
    ]
    for primary, args, words in cases:
        model = hl.hypernetize(primary, NUMBERS)
        assert words in check_hypernet(model, *args).skipped["samples"]


def test_each_check_is_shown_to_fail() -> None:
    wrong = WRONG_HEADS + WRONG_ENCODINGS + WRONG_PRIMARIES + WRONG_MODELS
    assert {check for _, check, _ in wrong} | {"inputs", "samples"} == set(CHECKS)


def test_an_extended_model_passes_with_a_blend_and_a_category() -> None:
    model = built({"c": hl.Categorical(3), "d": hl.Categorical(4, (2,))})
    model.extend("c", 2)
    for c in (4, torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2])):
        report = check_hypernet(model, vectors(), c=c)
        assert "samples" in report.passed

"""One set of weights per sample, and sweeps: equal to a loop over copies, for every layer."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hyperlight as hl
from hyperlight.heads import DirectedWeight, LowRankWeight, ScaledWeight
from tests.models import one_graph
from tests.reference.twins import loop_over_copies

B = 3
Case = tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.attention(x, x, x, attn_mask=mask)


class Subclass(nn.Embedding):
    pass


class FunctionOfWeights(nn.Module):
    """Uses a linear layer's weight itself, beside calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"y": F.linear(self.linear(x), self.linear.weight.t()), "n": 3, "none": None}


class Branching(nn.Module):
    """Control flow on values: vmap cannot follow."""

    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(8, 8), last or nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.last(y if y.sum() > 0 else -2 * y)


def _x(*shape: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randn(B, *shape, dtype=torch.float64),)


def _tokens(*shape: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randint(0, 10, (B, *shape)),)


CASES: dict[str, Case] = {
    "Linear": (lambda: nn.Linear(8, 5), _x(8)),
    "Linear, sequence": (lambda: nn.Linear(8, 5), _x(4, 8)),
    "Bilinear": (lambda: nn.Bilinear(4, 3, 5), lambda: (*_x(4)(), *_x(3)())),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, padding="same"), _x(4, 9)),
    "Conv1d, one entry": (lambda: nn.Conv1d(4, 6, 3, padding=1), _x(4, 1)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2), _x(4, 9, 9)),
    "Conv2d, grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), _x(4, 9, 9)),
    "Conv2d, reflected": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        _x(4, 9, 9),
    ),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 3), _x(2, 5, 5, 5)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), _x(4, 9)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), _x(4, 5, 5)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), _x(2, 4, 4, 4)),
    "Embedding": (lambda: nn.Embedding(10, 4), _tokens(6)),
    "Embedding, padded": (lambda: nn.Embedding(10, 4, padding_idx=1), _tokens(60)),
    "Embedding, subclass": (lambda: Subclass(10, 4, padding_idx=1), _tokens(60)),
    "EmbeddingBag, padded": (lambda: nn.EmbeddingBag(10, 4, padding_idx=1), _tokens(60)),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(10, 4), _tokens(6)),
    "LayerNorm": (lambda: nn.LayerNorm(8), _x(4, 8)),
    "RMSNorm": (lambda: nn.RMSNorm(8), _x(4, 8)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), _x(4, 5, 5)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), _x(4, 5, 5)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(4, affine=True), _x(4, 5)),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(4, affine=True), _x(4, 3, 3, 3)),
    "SyncBatchNorm, eval": (lambda: nn.SyncBatchNorm(4).eval(), _x(4, 5)),
    "BatchNorm1d, eval": (lambda: nn.BatchNorm1d(4).eval(), _x(4, 5)),
    "BatchNorm2d, eval": (lambda: nn.BatchNorm2d(4).eval(), _x(4, 5, 5)),
    "BatchNorm3d, eval": (lambda: nn.BatchNorm3d(4).eval(), _x(4, 2, 2, 2)),
    "PReLU": (lambda: nn.PReLU(4), _x(4, 5)),
    "MultiheadAttention": (Attention, _x(5, 8)),
    "MultiheadAttention, mask": (
        Attention,
        lambda: (*_x(5, 8)(), hl.Shared(torch.ones(5, 5).tril() == 0)),
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        _x(5, 8),
    ),
    "TransformerDecoderLayer": (
        lambda: nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        lambda: (*_x(5, 8)(), *_x(6, 8)()),
    ),
    "TransformerEncoder, eval": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2
        ).eval(),
        _x(5, 8),
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(
            nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2
        ),
        lambda: (*_x(5, 8)(), *_x(6, 8)()),
    ),
    "Transformer": (
        lambda: nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True),
        lambda: (*_x(5, 8)(), *_x(6, 8)()),
    ),
    "AdaptiveLogSoftmaxWithLoss": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 10, [3, 6]),
        lambda: (*_x(8)(), torch.tensor([1, 4, 9])),
    ),
    "RNN": (lambda: nn.RNN(4, 6, 2, batch_first=True), _x(5, 4)),
    "GRU": (lambda: nn.GRU(4, 6, 2, batch_first=True), _x(5, 4)),
    "GRU, bidirectional": (lambda: nn.GRU(4, 6, bidirectional=True, batch_first=True), _x(5, 4)),
    "LSTM": (lambda: nn.LSTM(4, 6, 2, batch_first=True), _x(5, 4)),
    "LSTM, projected": (lambda: nn.LSTM(4, 6, proj_size=3, batch_first=True), _x(5, 4)),
    "RNNCell": (lambda: nn.RNNCell(4, 6), _x(4)),
    "GRUCell": (lambda: nn.GRUCell(4, 6), _x(4)),
    "LSTMCell": (lambda: nn.LSTMCell(4, 6), _x(4)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 5)), _x(8)),
    "structured output": (FunctionOfWeights, _x(8)),
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 4)),
        _x(1, 5, 5),
    ),
}
# What does not run on the true batch: it reads a weight outside of the layer that owns it, or its
# shapes depend on values, which vmap cannot follow either.
APART = {"structured output": "vmap", "AdaptiveLogSoftmaxWithLoss": "loop"}
# Where tensors of the output have their batch, if not in front: recurrent states.
BATCH_DIMS = {
    "RNN": (0, 1),
    "GRU": (0, 1),
    "GRU, bidirectional": (0, 1),
    "LSTM": (0, 1, 1),
    "LSTM, projected": (0, 1, 1),
}
cases = pytest.mark.parametrize("case", CASES)


WITH_WEIGHTS = [
    *("linear", "conv", "rnn", "sparse", "normalization", "batchnorm", "instancenorm"),
    *("transformer", "adaptive"),
]


def test_the_table_has_every_layer_of_torch_with_weights() -> None:
    found = {type(m) for make, _ in CASES.values() for m in make().modules()}
    for name in WITH_WEIGHTS:
        module = getattr(nn.modules, name)
        for cls in (getattr(nn, name, None) for name in module.__all__):
            if cls is None or not issubclass(cls, nn.Module) or cls.__name__.startswith("Lazy"):
                continue
            if cls not in (nn.Identity, nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.RNNBase):
                assert any(issubclass(kind, cls) for kind in found), cls
    assert {nn.PReLU, nn.MultiheadAttention} <= found


def _model(make: Callable[[], nn.Module], **options: Any) -> hl.HyperModel:
    torch.manual_seed(0)
    primary = make().double()
    options = {"inputs": {"g": hl.Uniform(0.0, 1.0), "z": hl.Normal(2)}, "hidden": (8,), **options}
    return hl.hypernetize(primary, targets="*", **options)


def _gamma(*batch: int) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {
        "g": torch.rand(batch, dtype=torch.float64),
        "z": torch.randn(*batch, 2, dtype=torch.float64),
    }


def _leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _gradients(model: hl.HyperModel, output: Any) -> dict[str, Tensor]:
    loss = sum(
        (leaf * torch.linspace(-1, 1, leaf.numel()).reshape(leaf.shape)).sum()
        for leaf in _leaves(output)
        if leaf.is_floating_point()
    )
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(model.named_parameters(), found, strict=True)
    }


def _same(model: hl.HyperModel, output: Any, expected: Any) -> None:
    torch.testing.assert_close(_leaves(output), _leaves(expected), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        _gradients(model, output), _gradients(model, expected), rtol=1e-9, atol=1e-11
    )


def _announced(way: str, quiet: bool = False) -> Any:
    """What must be said of samples that run apart; without it a warning is an error."""
    if way == "batch" or quiet:
        return contextlib.nullcontext()
    how = {"vmap": "under torch.vmap", "loop": "one after another"}[way]
    return pytest.warns(UserWarning, match=f"cannot run once on the whole batch.*{how}")


@cases
@pytest.mark.parametrize(
    "head", [hl.Dense(), hl.LowRank(1), hl.ChannelScale()], ids=["dense", "low rank", "scale"]
)
def test_one_set_of_weights_per_sample_equals_the_loop(case: str, head: hl.Head) -> None:
    make, data = CASES[case]
    model = _model(make, head=head)
    args, gamma = data(), _gamma(B)
    way, dims = APART.get(case, "batch"), BATCH_DIMS.get(case, ())
    with _announced(way):
        output = model(*args, **gamma)
    assert model.last_run.way == way, model.last_run
    assert (model.last_run.reason == "") == (way == "batch")
    expected = loop_over_copies(model, args, gamma, per_sample=True, batch_dims=dims)
    _same(model, output, expected)
    again = model(*args, **gamma)  # by the plan of the first call, and without another warning
    assert model.last_run.way == way
    _same(model, again, expected)


@cases
def test_a_sweep_equals_the_loop(case: str) -> None:
    make, data = CASES[case]
    model = _model(make)
    args, gamma = data(), _gamma(4)
    if any(isinstance(a, hl.Shared) for a in args):
        args = tuple(a.value if isinstance(a, hl.Shared) else a for a in args)
    way = APART.get(case, "batch")
    with _announced(way, quiet=way == "vmap"):
        output = model.sweep(*args, **gamma)
    assert model.last_run.way == way, model.last_run
    expected = loop_over_copies(model, args, gamma, per_sample=False)
    _same(model, output, expected)
    _same(model, model.sweep(*args, **gamma), expected)
    assert model.last_run.way == way


def test_a_batch_of_one_keeps_its_dimension() -> None:
    model = _model(lambda: nn.Linear(8, 5))
    x, gamma = torch.randn(1, 8, dtype=torch.float64), _gamma(1)
    assert model(x, **gamma).shape == (1, 5)
    assert model.sweep(x, **gamma).shape == (1, 1, 5)


def test_a_sweep_keeps_the_batch_shape() -> None:
    model = _model(lambda: nn.Linear(8, 5))
    x = torch.randn(7, 8, dtype=torch.float64)
    g, z = torch.rand(2, 1, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    output = model.sweep(x, g=g, z=z)
    assert output.shape == (2, 3, 7, 5)
    torch.testing.assert_close(output[1, 2], model(x, g=g[1, 0], z=z[2]))


def test_inputs_broadcast_over_samples() -> None:
    model = _model(lambda: nn.Linear(8, 5))
    x, gamma = torch.randn(B, 8, dtype=torch.float64), _gamma(B)
    output = model(x, g=0.3, z=gamma["z"])
    torch.testing.assert_close(output[1:2], model(x[1:2], g=0.3, z=gamma["z"][1]))


def test_keyword_and_nested_arguments_are_split() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 5)

        def forward(self, pair: dict[str, Tensor], factor: float, *, bias: list[Tensor]) -> Tensor:
            return self.linear(pair["x"]) * factor + bias[0]

    model = _model(Nested)
    x, bias, gamma = *_x(8)(), *_x(5)(), _gamma(B)
    output = model({"x": x}, 2.0, bias=[bias], **gamma)
    for i in range(B):
        one = {name: value[i] for name, value in gamma.items()}
        expected = model({"x": x[i : i + 1]}, 2.0, bias=[bias[i : i + 1]], **one)
        torch.testing.assert_close(output[i : i + 1], expected)


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).square().mean()


class LossOfALayer(nn.Linear):
    """A subclass of a layer with a forward of its own: it has no rule."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square().mean()


def test_a_scalar_output_is_that_of_the_batch() -> None:
    model = _model(Loss)
    (x,), gamma = _x(8)(), _gamma(B)
    output = model(x, **gamma)
    assert output.shape == ()
    assert model.last_run.way == "batch"
    each = loop_over_copies(model, (x,), gamma, per_sample=True)[0]
    _same(model, output, each.mean())
    assert model.sweep(x, **gamma).shape == (B,)  # every set has the whole batch


def test_a_scalar_output_of_samples_that_run_apart_is_stacked() -> None:
    model = _model(lambda: LossOfALayer(8, 5))
    (x,), gamma = _x(8)(), _gamma(B)
    with pytest.warns(UserWarning, match="such as a loss, comes back one per sample"):
        output = model(x, **gamma)
    assert output.shape == (B,)
    assert model.last_run.way == "vmap"
    _same(model, output, loop_over_copies(model, (x,), gamma, per_sample=True))


def test_recurrent_states_are_passed_on_in_the_layout_of_the_layer() -> None:
    model = _model(lambda: nn.LSTM(4, 6, 2, batch_first=True))
    (x,), gamma = _x(5, 4)(), _gamma(B)
    whole, _ = model(x, **gamma)
    _, states = model(x[:, :3], **gamma)
    assert [s.shape for s in states] == [(2, B, 6), (2, B, 6)]
    net = model.bind(**gamma)
    _, states = net(x[:, :3])
    rest, _ = net(x[:, 3:], tuple(hl.PerSample(state, dim=1) for state in states))
    torch.testing.assert_close(rest, whole[:, 3:], rtol=1e-10, atol=1e-12)


def test_numbers_and_tensors_without_dimensions_are_shared() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 5)

        def forward(self, x: Tensor, a: float, b: Tensor, *, c: Tensor) -> Tensor:
            return a * self.linear(x) * b + c

    model = _model(Scaled)
    (x,), gamma, one = _x(8)(), _gamma(B), torch.tensor
    output = model(x, 2.0, one(3.0), c=one(0.5), **gamma)
    for i in range(B):
        own = {name: value[i] for name, value in gamma.items()}
        expected = model(x[i : i + 1], 2.0, one(3.0), c=one(0.5), **own)
        torch.testing.assert_close(output[i : i + 1], expected, rtol=1e-10, atol=1e-12)


def test_dropout_draws_for_every_sample() -> None:
    primary = nn.Sequential(nn.Linear(8, 200), nn.Dropout(0.5))
    model = _model(lambda: primary)
    x = torch.ones(2, 8, dtype=torch.float64)
    gamma = {"g": torch.full((2,), 0.5), "z": torch.zeros(2, 2)}
    for output in (model(x, **gamma), model.sweep(x[:1], **gamma).squeeze(1)):
        dropped = output == 0
        assert 0.3 < dropped.double().mean() < 0.7
        assert (dropped[0] != dropped[1]).any()
    model.eval()
    output = model(x, **gamma)
    assert torch.equal(output[0], output[1])


# --- what vmap cannot follow ------------------------------------------------------


def test_what_vmap_cannot_follow_runs_in_a_loop_and_says_so_once() -> None:
    model = _model(Branching)
    (x,), gamma = _x(8)(), _gamma(B)
    words = (
        "cannot run once on the whole batch.*one after another: slower.*The reason: last cannot "
    )
    with pytest.warns(UserWarning, match=words):
        output = model(x, **gamma)
    expected = loop_over_copies(model, (x,), gamma, per_sample=True)
    _same(model, output, expected)
    assert model.last_run.way == "loop"
    assert "read into Python" in model.last_run.reason
    assert "torch.vmap fails: " in model.last_run.reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _same(model, model(x, **gamma), expected)
        sweep = model.sweep(x, **gamma)
    _same(model, sweep, loop_over_copies(model, (x,), gamma, per_sample=False))


def test_what_a_network_decides_after_its_last_layer_it_decides_for_the_whole_batch() -> None:
    model = _model(lambda: Branching(nn.Identity()))
    (x,), gamma = _x(8)(), _gamma(B)
    each = model(x, **gamma)
    assert model.last_run.way == "batch"
    theta = model.predict(**gamma)
    y = torch.einsum("bi,boi->bo", x, theta["linear.weight"]) + theta["linear.bias"]
    _same(model, each, y if y.sum() > 0 else -2 * y)
    shifted = x - 10 * torch.linalg.pinv(theta["linear.weight"].detach().mean(0)).sum(1)
    y = torch.einsum("bi,boi->bo", shifted, theta["linear.weight"]) + theta["linear.bias"]
    _same(model, model(shifted, **gamma), y if y.sum() > 0 else -2 * y)
    assert model.last_run.way == "batch"


def test_in_a_sweep_every_set_of_weights_decides_alone() -> None:
    model = _model(lambda: Branching(nn.Identity()))
    (x,), gamma = _x(8)(), _gamma(12)
    theta = model.predict(**gamma)
    y = torch.einsum("ni,boi->bno", x, theta["linear.weight"]) + theta["linear.bias"].unsqueeze(1)
    with torch.no_grad():  # so that half of the sums are negative
        model.primary.linear.bias -= y.sum((1, 2)).median() / y[0].numel() + 1e-6
    expected = loop_over_copies(model, (x,), gamma, per_sample=False)
    with _announced("loop"):
        output = model.sweep(x, **gamma)
    _same(model, output, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _same(model, model.sweep(x, **gamma), expected)


def test_the_way_is_decided_for_every_structure_of_arguments() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor, positive: bool = False) -> Tensor:
            y = self.linear(x)
            return self.last(y if not positive or y.sum() > 0 else -2 * y)

    model = _model(Optional)
    (x,), gamma = _x(8)(), _gamma(B)
    ways = []
    for positive in (False, True, False, True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(x, positive=positive, **gamma)
        ways.append(model.last_run.way)
    assert ways == ["batch", "loop", "batch", "loop", "batch"]
    model(x, g=0.3, z=torch.zeros(2, dtype=torch.float64))
    assert (model.last_run.way, model.last_run.reason) == ("one", "")


class OutOfMemoryOnce(nn.Module):
    """Fails in its first forward as a device does that has no memory left."""

    calls = 0  # of the class, since a bound network keeps what it assigns to itself

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.error = error
        OutOfMemoryOnce.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        OutOfMemoryOnce.calls += 1
        if OutOfMemoryOnce.calls == 1:
            raise self.error
        return self.linear(x)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory (simulated)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["device", "cpu"],
)
def test_running_out_of_memory_is_passed_on_and_forgotten(error: RuntimeError) -> None:
    model = hl.hypernetize(OutOfMemoryOnce(error), {"g": hl.Uniform(0.0, 1.0)})
    x, g = torch.rand(64, 4), torch.rand(64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no fallback is announced
        with pytest.raises(type(error), match="memory"):
            model(x, g=g)
        model(x, g=g)
    assert OutOfMemoryOnce.calls == 2  # one forward for all 64 samples, not a loop


def test_an_error_of_the_primary_is_not_taken_for_one_of_vmap() -> None:
    model = _model(lambda: nn.Linear(8, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            model(*_x(7)(), **_gamma(B))
        assert model(*_x(8)(), **_gamma(B)).shape == (B, 5)
    assert model.last_run.way == "batch"


# --- low rank ---------------------------------------------------------------------


@pytest.mark.parametrize("head", [hl.LowRank(2), hl.PerLayer(rank=2)], ids=repr)
def test_low_rank_matrices_are_not_multiplied_out(
    head: hl.Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LowRankWeight, "dense", _refuse)
    primary = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 3))
    model = _model(lambda: primary, head={"0.weight": head, "*": hl.Dense()})
    x = torch.randn(B, 64, dtype=torch.float64)
    assert model(x, **_gamma(B)).shape == (B, 3)
    assert model.sweep(x, **_gamma(4)).shape == (4, B, 3)


class Many(nn.Module):
    """A layer of every kind whose outputs can be scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.other = nn.MultiheadAttention(8, 2, kdim=8, vdim=8, batch_first=True)
        self.conv = nn.Conv1d(4, 6, 3, groups=2)
        self.up = nn.ConvTranspose1d(6, 4, 3, groups=2)
        self.linear = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = self.attention(x, x, x, need_weights=False)[0] + x
        x = self.other(x, x.flip(1), x.flip(1), need_weights=False)[0]
        return self.linear(self.up(torch.tanh(self.conv(x))))


def test_scaled_weights_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(Many, head=hl.ChannelScale())
    tokens, gamma = torch.randint(0, 6, (B, 4)), _gamma(B)
    expected = loop_over_copies(model, (tokens,), gamma, per_sample=True)
    monkeypatch.setattr(ScaledWeight, "dense", _refuse)
    output = model(tokens, **gamma)
    assert model.last_run.way == "batch"
    monkeypatch.undo()
    _same(model, output, expected)


def _refuse(self: object) -> Tensor:
    raise AssertionError("the matrix was built")


class Classifier(nn.Module):
    """Ends in a convolution that covers its image, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.cover = nn.Conv2d(4, 40, 3)
        self.linear = nn.Linear(40, 32)
        self.last = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.cover(torch.relu(self.conv(x))))
        return self.last(torch.relu(self.linear(x.flatten(1))))


def _built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the weights that are built from now on."""
    shapes: list[tuple[int, ...]] = []
    dense = DirectedWeight.dense

    def noted(self: DirectedWeight) -> Tensor:
        shapes.append(tuple(self.theta0.shape))
        return dense(self)

    monkeypatch.setattr(DirectedWeight, "dense", noted)
    return shapes


@pytest.mark.parametrize("gain", [None, 0.5])
def test_weights_that_one_row_reads_are_not_built(
    gain: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(Classifier)
    given = _gamma(B) | ({} if gain is None else {"gain": gain})
    x = torch.randn(B, 1, 5, 5, dtype=torch.float64)
    expected = loop_over_copies(model, (x,), given, per_sample=True)
    built = _built(monkeypatch)
    output = model(x, **given)
    assert model.last_run.way == "batch"
    assert {len(shape) for shape in built} == {1, 2, 4}  # biases, the last layer, the first
    assert (2, 32) in built
    assert (4, 1, 3, 3) in built
    assert (40, 4, 3, 3) not in built
    assert (32, 40) not in built
    _same(model, output, expected)
    swept = model.sweep(x[:1], **given)
    assert (40, 4, 3, 3) not in built
    assert (32, 40) not in built
    _same(model, swept, loop_over_copies(model, (x[:1],), given, per_sample=False))
    model.sweep(x, **given)  # every set reads several rows
    assert (40, 4, 3, 3) in built
    assert (32, 40) in built


def test_a_bound_network_keeps_the_weights_that_it_was_bound_with() -> None:
    model = _model(Classifier)
    x = torch.randn(B, 1, 5, 5, dtype=torch.float64)
    network = model.bind(**_gamma(B))
    before = network(x)
    with torch.no_grad():
        model.hypernet.head.weight.add_(1.0)
    assert torch.equal(network(x), before)


def test_a_bound_linear_layer_of_low_rank_is_one_still() -> None:
    seen = []
    primary = nn.Linear(64, 50)
    primary.register_forward_hook(lambda module, _, out: seen.append(module))
    model = _model(lambda: primary, head=hl.LowRank(2))
    model(torch.randn(B, 64, dtype=torch.float64), **_gamma(B))
    assert isinstance(seen[0], nn.Linear)
    assert "in_features=64" in repr(seen[0])


# --- compile ----------------------------------------------------------------------


@one_graph
@pytest.mark.parametrize(
    "head",
    [hl.Dense(), hl.LowRank(2), hl.PerLayer(), hl.PerLayer(rank=2), hl.ChannelScale()],
    ids=repr,
)
@pytest.mark.parametrize("what", ["forward", "sweep"])
def test_many_sets_of_weights_compile_to_one_graph(what: str, head: hl.Head) -> None:
    primary = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 20))
    model = _model(lambda: primary, head=head)
    x, gamma = torch.randn(B, 1, 5, 5, dtype=torch.float64), _gamma(B)
    run = model if what == "forward" else model.sweep
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    _same(model, compiled(x, **gamma), run(x, **gamma))


# --- what is refused --------------------------------------------------------------


@pytest.mark.parametrize(
    "run", [lambda m, *a, **k: m(*a, **k), lambda m, *a, **k: m.sweep(*a, **k)]
)
@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.BatchNorm1d(8), "BatchNorm1d '1' in training mode takes statistics over the batch"),
        (
            nn.BatchNorm1d(8, track_running_stats=False).eval(),
            "BatchNorm1d '1' without running statistics takes statistics over the batch",
        ),
        (nn.SyncBatchNorm(8), "SyncBatchNorm '1' in training mode"),
        (nn.InstanceNorm1d(8, track_running_stats=True), "InstanceNorm1d '1' in training mode"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_that_mix_samples_are_refused(run: Any, layer: nn.Module, words: str) -> None:
    model = _model(lambda: nn.Sequential(nn.Linear(8, 8), layer))
    with pytest.raises(hl.InputError) as error:
        run(model, *_x(8)(), **_gamma(B))
    for word in (words, "model.eval()", "GroupNorm", "batch shape ()", "model.sample()"):
        assert word in str(error.value)


def test_a_batch_norm_alone_in_eval_mode_is_fine() -> None:
    model = _model(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))
    model.primary[1].eval()
    assert model.training
    before = model.primary[1].running_mean.clone()
    assert model(*_x(8)(), **_gamma(B)).shape == (B, 8)
    assert torch.equal(model.primary[1].running_mean, before)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda m: m(torch.randn(B + 1, 8).double(), **_gamma(B)),
            "Argument 'input' has shape (4, 8); with 3 sets of weights, one per sample, "
            "expected 3 entries in its first dimension. Wrap a tensor that all samples share",
        ),
        (
            lambda m: m(input=torch.randn(B + 1, 8).double(), **_gamma(B)),
            "Argument 'input' has shape (4, 8); with 3 sets",
        ),
        (
            lambda m: m(hl.PerSample(torch.randn(3, 8).double(), dim=1), **_gamma(B)),
            "Argument 'input' has shape (3, 8); with 3 sets of weights, one per sample, "
            "expected 3 entries in dimension 1.",
        ),
        (
            lambda m: m(torch.randn(6, 8).double(), **_gamma(2, 3)),
            "have batch shape (2, 3); expected () for one set of weights, or (B,)",
        ),
        (
            lambda m: m.sweep(torch.randn(6, 8).double(), **_gamma()),
            "have batch shape (): that is one set of weights. Pass the values to sweep over",
        ),
        (
            lambda m: m.bind(**_gamma(2, 3)),
            "have batch shape (2, 3); expected () for one set of weights, or (B,)",
        ),
        (
            lambda m: m.at(**_gamma(2, 3)),
            "have batch shape (2, 3): that is several sets of weights, and a module of its own "
            "holds one. Pass a single value for each input",
        ),
        (lambda m: m.sweep(torch.randn(6, 8).double(), g=0.1), "Hypernetwork input 'z' is missing"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call: Any, words: str) -> None:
    with pytest.raises(hl.InputError) as error:
        call(_model(lambda: nn.Linear(8, 5)))
    assert words in str(error.value)

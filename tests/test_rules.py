"""The rules of single layers with one set of weights per sample, and the plans of calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hyperlight as hl
from hyperlight.heads import LowRankWeight, ScaledWeight, Weight, dense
from hyperlight.many import rules
from hyperlight.many.track import COPIED, Axis

SPACE = {"g": hl.Uniform(0.0, 1.0)}
DOUBLE: Any = {"dtype": torch.float64}


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


# --- where samples are in a dimension ------------------------------------------------------


axes = st.builds(lambda *place: Axis(*place), st.integers(0, 2), *[st.integers(1, 3)] * 2)


@given(axes, st.integers(2, 4), st.permutations(range(3)))
def test_split_and_merge_invert_each_other(axis: Axis, samples: int, order: list[int]) -> None:
    shape = [2, 3, 4]
    shape[axis.dim] = axis.outer * samples * axis.inner
    x = torch.randn([shape[d] for d in order]).permute([order.index(d) for d in range(3)])
    found = rules.split(x, axis, samples)
    assert found.shape[0] == samples
    entries = torch.arange(shape[axis.dim])
    for b in range(samples):
        own = x.index_select(axis.dim, entries[entries // axis.inner % samples == b])
        assert torch.equal(found[b], own)
    assert torch.equal(rules.merge(found, axis), x)


# --- convolutions -----------------------------------------------------------------------------


class Alone(rules.Layer):
    """A layer by itself, which is told where its samples are."""

    def __init__(
        self, module: nn.Module, weights: Mapping[str, Weight], samples: int, axis: Axis
    ) -> None:
        super().__init__("layer", samples, weights)
        self.module, self.axis = module, axis

    def take(self, slot: str, tensor: Tensor, expected: int = 0) -> tuple[Tensor, Axis]:
        return tensor, self.axis

    def expect(self, slot: str, tensor: Tensor, axis: Axis) -> None:
        pass

    def share(self, slot: str, tensor: Tensor) -> None:
        pass

    def one(self, module: nn.Module, weights: Mapping[str, Weight]) -> Any:
        raise AssertionError("no rule here runs the layer itself")

    def give(self, output: Tensor, *axes: Axis) -> Tensor:
        return output


def one_after_another(
    module: nn.Module, weights: Mapping[str, Weight], x: Tensor, axis: Axis, samples: int
) -> Tensor:
    rows = rules.split(x, axis, samples)
    found = []
    for b in range(samples):
        own = {name: dense(weight)[b] for name, weight in weights.items()}
        found.append(torch.func.functional_call(module, own, rows[b]))
    return rules.merge(torch.stack(found), axis)


def equal_with_gradients(found: Tensor, expected: Tensor, sources: list[Tensor]) -> None:
    close(found, expected)
    by = torch.linspace(-1, 1, expected.numel(), **DOUBLE).view_as(expected)
    options: Any = {"retain_graph": True, "materialize_grads": True}
    wanted = torch.autograd.grad((expected * by).sum(), sources, **options)
    close(torch.autograd.grad((found * by).sum(), sources, **options), wanted)


def weights_of(
    module: nn.Module, samples: int, rank: int = 0, place: tuple[int, int] | None = None
) -> dict[str, Weight]:
    """Weights for every sample: of low rank, or scaled in the channels at that place."""
    made: dict[str, Weight] = {}
    for name, parameter in module.named_parameters():
        if place is not None and parameter.ndim > 1:
            dim, groups = place
            channels = parameter.shape[dim] * groups
            scale = torch.randn(samples, channels, **DOUBLE, requires_grad=True)
            made[name] = ScaledWeight(parameter, scale, dim, groups)
        elif rank and parameter.ndim > 1:
            left = torch.randn(samples, len(parameter), rank, **DOUBLE, requires_grad=True)
            columns = parameter[0].numel()
            right = torch.randn(samples, rank, columns, **DOUBLE, requires_grad=True)
            made[name] = LowRankWeight(parameter, left, right)
        else:
            made[name] = torch.randn(samples, *parameter.shape, **DOUBLE, requires_grad=True)
    return made


def leaves_of(weights: Mapping[str, Weight]) -> list[Tensor]:
    found: list[Tensor] = []
    for weight in weights.values():
        if isinstance(weight, ScaledWeight):
            found.append(weight.scale)
        else:
            found += [weight.left, weight.right] if isinstance(weight, LowRankWeight) else [weight]
    return found


CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@st.composite
def convolutions(draw: Callable[..., Any], transposed: bool = False) -> tuple[Any, list[int]]:
    """A convolution and the sizes of its images."""
    dims = draw(st.integers(1, 2 if transposed else 3))
    groups = draw(st.sampled_from([1, 1, 2]))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    dilation = [draw(st.integers(1, 2)) for _ in range(dims)]
    stride = [draw(st.integers(1, 2)) for _ in range(dims)]
    options: dict[str, Any] = {"bias": draw(st.booleans()), "groups": groups, "dilation": dilation}
    if transposed:
        options["output_padding"] = [draw(st.integers(0, s - 1)) for s in stride]
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "circular", "replicate"]))
    padding: Any = [draw(st.integers(0, 1)) for _ in range(dims)]
    if not transposed and draw(st.booleans()):
        padding, stride = draw(st.sampled_from([("same", [1] * dims), ("valid", stride)]))
    kind = (TRANSPOSED if transposed else CONV)[dims - 1]
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    module = kind(*channels, kernel, stride, padding, **options, dtype=torch.float64)
    return module, [draw(st.integers(5, 6)) for _ in range(dims)]


WAYS = {"grouped": False, "looped": True}
quick = settings(max_examples=40)


@pytest.mark.parametrize("way", WAYS)
@quick
@given(convolutions(), axes.filter(lambda axis: axis.dim == 0), st.integers(2, 3))
def test_convolutions_equal_one_after_another(
    way: str, case: tuple[Any, list[int]], axis: Axis, samples: int
) -> None:
    module, sizes = case
    weights, count = weights_of(module, samples), samples * axis.inner * axis.outer
    x = torch.randn(count, module.in_channels, *sizes, **DOUBLE, requires_grad=True)
    layer = Alone(module, weights, samples, axis)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "_loop_is_faster", lambda u, w: WAYS[way])
        patch.setattr(rules, "_grouped" if WAYS[way] else "_looped", None)
        found = rules.convolution(layer, module, x)
    expected = one_after_another(module, weights, x, axis, samples)
    equal_with_gradients(found, expected, [x, *leaves_of(weights)])


@quick
@given(convolutions(), st.integers(2, 3), st.integers(1, 2))
def test_windows_equal_groups(case: tuple[Any, list[int]], samples: int, rows: int) -> None:
    """ONNX takes no convolution with an open number of groups."""
    module, sizes = case
    weights, convolve = weights_of(module, samples), rules._CONVOLVE[len(sizes) - 1]
    u = torch.randn(samples, rows, module.in_channels, *sizes, **DOUBLE, requires_grad=True)
    options = (module.stride, 0, module.dilation)
    given = (u, weights["weight"], weights.get("bias"), options, module.groups)
    found = rules._windowed(convolve, *given)
    sources = [u, *leaves_of(weights)]
    equal_with_gradients(found, rules._grouped(convolve, *given), sources)
    equal_with_gradients(found, rules._looped(convolve, *given), sources)


@quick
@given(convolutions(), axes.filter(lambda axis: axis.dim == 0), st.integers(2, 3))
def test_low_rank_convolutions_are_not_multiplied_out(
    case: tuple[Any, list[int]], axis: Axis, samples: int
) -> None:
    module, sizes = case
    weights, count = weights_of(module, samples, rank=2), samples * axis.inner * axis.outer
    x = torch.randn(count, module.in_channels, *sizes, **DOUBLE, requires_grad=True)
    layer = Alone(module, weights, samples, axis)
    found = rules.convolution(layer, module, x)
    assert (weights["weight"]._dense is None) == (module.groups == 1)
    expected = one_after_another(module, weights, x, axis, samples)
    equal_with_gradients(found, expected, [x, module.weight, *leaves_of(weights)])


@quick
@given(
    st.booleans().flatmap(lambda t: st.tuples(st.just(t), convolutions(transposed=t))),
    st.booleans(),
    axes.filter(lambda axis: axis.dim == 0),
    st.integers(2, 3),
)
def test_scaled_convolutions_run_once_on_the_whole_batch(
    case: tuple[bool, tuple[Any, list[int]]], other: bool, axis: Axis, samples: int
) -> None:
    transposed, (module, sizes) = case
    place = (1, module.groups) if transposed else (0, 1)
    if other:  # not the output channels
        place = (0, 1) if transposed else (1, 1)
    weights = weights_of(module, samples, place=place)
    x = torch.randn(
        samples * axis.inner * axis.outer,
        module.in_channels,
        *sizes,
        **DOUBLE,
        requires_grad=True,
    )
    layer = Alone(module, weights, samples, axis)
    rule = rules.transposed_convolution if transposed else rules.convolution
    found = rule(layer, module, x)
    assert (weights["weight"]._dense is None) == (not other)
    expected = one_after_another(module, weights, x, axis, samples)
    equal_with_gradients(found, expected, [x, module.weight, *leaves_of(weights)])


@pytest.mark.parametrize("dim", [0, 1])
@quick
@given(axes, st.integers(2, 3), st.booleans(), st.booleans())
def test_scaled_linear_layers_share_their_weight(
    dim: int, axis: Axis, samples: int, bias: bool, shared: bool
) -> None:
    module = nn.Linear(4, 5, bias=bias, dtype=torch.float64)
    weights = weights_of(module, samples, place=(dim, 1))
    if shared:
        weights.pop("bias", None)
    shape = [2, 3, 2, 4]
    shape[axis.dim] = samples * axis.inner * axis.outer
    x = torch.randn(shape, **DOUBLE, requires_grad=True)
    found = rules.linear(Alone(module, weights, samples, axis), module, x)
    assert weights["weight"]._dense is None
    expected = one_after_another(module, weights, x, axis, samples)
    equal_with_gradients(found, expected, [x, *module.parameters(), *leaves_of(weights)])


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("dim", [0, 1])
@quick
@given(axes, st.integers(2, 3))
def test_scaled_embeddings_share_their_table(
    dim: int, padding: int | None, axis: Axis, samples: int
) -> None:
    module = nn.Embedding(6, 4, padding_idx=padding, dtype=torch.float64)
    weights, shape = weights_of(module, samples, place=(dim, 1)), [2, 3, 2]
    shape[axis.dim] = samples * axis.inner * axis.outer
    rows = torch.randint(0, 6, shape)
    found = rules.embedding(Alone(module, weights, samples, axis), module, rows)
    assert weights["weight"]._dense is None
    expected = one_after_another(module, weights, rows, axis, samples)
    equal_with_gradients(found, expected, [module.weight, *leaves_of(weights)])


@quick
@given(convolutions(), st.booleans(), st.integers(2, 3), st.integers(1, 3))
def test_copies_of_images_are_convolved_once(
    case: tuple[Any, list[int]], beside: bool, samples: int, rows: int
) -> None:
    module, sizes = case
    axis = Axis(0, 1, rows, COPIED) if beside else Axis(0, rows, 1, COPIED)
    weights = weights_of(module, samples)
    images = torch.randn(rows, module.in_channels, *sizes, **DOUBLE, requires_grad=True)
    x = rules.merge(images.expand(samples, *images.shape), axis)
    convolved = []
    with pytest.MonkeyPatch.context() as patch:
        convolve = rules._CONVOLVE[len(sizes) - 1]

        def seen(x: Tensor, *rest: Any) -> Tensor:
            convolved.append(len(x))
            return convolve(x, *rest)

        table = list(rules._CONVOLVE)
        table[len(sizes) - 1] = seen
        patch.setattr(rules, "_CONVOLVE", tuple(table))
        patch.setattr(rules, "_loop_is_faster", lambda u, w: False)
        found = rules.convolution(Alone(module, weights, samples, axis), module, x)
    assert convolved == [rows]
    expected = one_after_another(module, weights, x, axis, samples)
    equal_with_gradients(found, expected, [images, *leaves_of(weights)])


@quick
@given(st.integers(1, 3), st.booleans(), axes.filter(lambda axis: axis.dim == 0), st.integers(2, 3))
def test_a_kernel_that_covers_the_image_is_a_product(
    dims: int, bias: bool, axis: Axis, samples: int
) -> None:
    sizes = [2, 3, 4][:dims]
    module = CONV[dims - 1](2, 3, sizes, bias=bias, dtype=torch.float64)
    weights, count = weights_of(module, samples), samples * axis.inner * axis.outer
    x = torch.randn(count, 2, *sizes, **DOUBLE, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "_grouped", None)
        patch.setattr(rules, "_looped", None)
        found = rules.convolution(Alone(module, weights, samples, axis), module, x)
    expected = one_after_another(module, weights, x, axis, samples)
    equal_with_gradients(found, expected, [x, *leaves_of(weights)])


def test_a_dilated_kernel_of_the_size_of_the_image_is_refused_as_torch_does() -> None:
    model = model_of(nn.Conv1d(2, 3, 4, dilation=2))
    x, g = torch.randn(3, 2, 4, **DOUBLE), gamma(3)
    for run in (lambda: model(x, g=0.5), lambda: model(x, g=g), lambda: model.bind(g=g)(x)):
        with pytest.raises(RuntimeError, match="can't be greater than actual input size"):
            run()


@pytest.mark.parametrize("rank", [0, 2])
@quick
@given(convolutions(transposed=True), axes.filter(lambda a: a.dim == 0), st.integers(2, 3))
def test_transposed_convolutions_equal_one_after_another(
    rank: int, case: tuple[Any, list[int]], axis: Axis, samples: int
) -> None:
    module, sizes = case
    weights, count = weights_of(module, samples, rank), samples * axis.inner * axis.outer
    x = torch.randn(count, module.in_channels, *sizes, **DOUBLE, requires_grad=True)
    layer = Alone(module, weights, samples, axis)
    found = rules.transposed_convolution(layer, module, x)
    expected = one_after_another(module, weights, x, axis, samples)
    equal_with_gradients(found, expected, [x, *leaves_of(weights)])


def test_a_loop_is_taken_for_large_images_of_few_weights_only() -> None:
    small, large = torch.zeros(2, 3, 4, 8, 8), torch.zeros(2, 3, 64, 64, 64)
    weight = torch.zeros(2, 8, 64, 3, 3)
    assert rules._loop_is_faster(large, weight)
    assert not rules._loop_is_faster(small, torch.zeros(2, 8, 4, 3, 3))
    assert not rules._loop_is_faster(large[:, :1], weight)  # one image of a set
    assert not rules._loop_is_faster(large, torch.zeros(2, 4000, 64, 3, 3))


# --- models -----------------------------------------------------------------------------------


def model_of(primary: nn.Module, **options: Any) -> hl.HyperModel:
    options = {"targets": "*", "hidden": (4,), "init": hl.Relative(0.5), **options}
    return hl.hypernetize(primary.double(), SPACE, **options)


def gamma(samples: int) -> Tensor:
    return torch.linspace(0.05, 0.95, samples, **DOUBLE)


def gradients(model: hl.HyperModel, output: Tensor) -> list[Tensor]:
    by = torch.linspace(-1, 1, output.numel(), **DOUBLE).view_as(output)
    found = torch.autograd.grad(
        (output * by).sum(), list(model.parameters()), materialize_grads=True, retain_graph=True
    )
    return list(found)


# --- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, -2])
def test_an_argument_may_hold_its_samples_in_another_dimension(dim: int) -> None:
    model, g = model_of(nn.GRU(4, 5)), gamma(3)
    x, start = torch.randn(6, 3, 4, **DOUBLE), torch.randn(1, 3, 5, **DOUBLE)
    y, end = model(hl.PerSample(x, dim=dim), hl.PerSample(start, dim=dim), g=g)
    assert model.last_run.way == "batch"
    for i in range(3):
        own, last = model(x[:, i : i + 1], start[:, i : i + 1], g=g[i])
        close((y[:, i : i + 1], end[:, i : i + 1]), (own, last))


def test_a_declared_dimension_is_checked() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(hl.InputError, match=r"hl\.PerSample was given \[0\]; expected a tensor"):
        hl.PerSample([0], dim=0)
    dim: Any
    for dim in (2, -3, 0.5, True, "batch"):
        with pytest.raises(hl.InputError, match="2 dimensions; expected a dimension from -2 to 1"):
            hl.PerSample(x, dim=dim)


def test_what_vmap_takes_holds_its_samples_in_front() -> None:
    """If the network cannot run on the true batch, a declared dimension is refused in words."""

    class Reads(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) @ self.weight

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) @ self.b.weight

    x, g = torch.randn(5, 3, 4, **DOUBLE), gamma(3)
    model = model_of(Reads(4, 4))  # a layer of its own kind: vmap over it alone
    y = model(hl.PerSample(x, dim=1), g=g)
    assert model.last_run.way == "batch"
    for i in range(3):
        close(y[:, i : i + 1], model(x[:, i : i + 1], g=g[i]))
    with pytest.raises(hl.InputError, match=r"b\.weight is read outside.*Pass the batch first"):
        model_of(Net())(hl.PerSample(x, dim=1), g=g)


# --- embeddings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head", [hl.Dense(), hl.LowRank(1), hl.ChannelScale()], ids=["dense", "low rank", "scale"]
)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_padding_row_has_no_gradient(head: hl.Head, sparse: bool) -> None:
    model = model_of(nn.Embedding(6, 4, padding_idx=2, sparse=sparse), head=head)
    tokens, g = torch.tensor([[2, 2, 2], [1, 2, 5], [2, 3, 2]]), gamma(3)
    found = model(tokens, g=g)
    assert model.last_run.way == "batch"
    expected = torch.cat([model(tokens[i : i + 1], g=g[i]) for i in range(3)])
    close(found, expected)
    close(gradients(model, found), gradients(model, expected))
    by_theta0 = torch.autograd.grad(found.sum(), model.primary.weight)[0].to_dense()
    assert by_theta0.ne(0).any(1).tolist() == [False, True, False, True, False, True]
    only = gradients(model, model(tokens[:1].expand(3, -1), g=g))
    assert not any(each.to_dense().any() for each in only)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_tokens_equal_one_after_another(mode: str) -> None:
    model = model_of(nn.EmbeddingBag(6, 4, mode=mode, padding_idx=2))
    tokens, g = torch.tensor([[2, 0, 2], [1, 2, 5], [3, 3, 2]]), gamma(3)
    found = model(tokens, g=g)
    assert model.last_run.way == "batch"
    close(found, torch.cat([model(tokens[i : i + 1], g=g[i]) for i in range(3)]))


# --- attention --------------------------------------------------------------------------------


MASKS = {
    "none": (None, None),
    "of the scores": ("float", None),
    "of the scores, bool": ("bool", None),
    "of every sample": ("float, own", None),
    "of every sample, bool": ("bool, own", None),
    "padding": (None, "bool"),
    "padding, float": (None, "float"),
    "both, bool": ("bool", "bool"),
    "both, float": ("float", "float"),
    "both, own": ("float, own", "float"),
}
LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without bias": {"bias": False},
    "rows of bias": {"add_bias_kv": True},
    "zeros": {"add_zero_attn": True},
    "other sizes": {"kdim": 5, "vdim": 3},
}


def bool_mask(*shape: int) -> Tensor:
    mask = torch.rand(shape) < 0.4
    mask[..., 0] = False
    return mask


class Attends(nn.Module):
    """Attention, where a mask for every sample and head is folded as the layer takes it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)

    def forward(self, *data: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
        if mask is not None and mask.ndim == 4:
            mask = mask.flatten(0, 1)
        return self.attention(*data, attn_mask=mask, **options)


def masks_for(masks: tuple[str | None, str | None], *shape: int) -> dict[str, Tensor]:
    samples, length, keys = shape
    own, padding = masks
    found = {}
    if own:
        sizes = (samples, 2, length, keys) if "own" in own else (length, keys)
        found["mask"] = bool_mask(*sizes) if "bool" in own else torch.randn(sizes, **DOUBLE)
    if padding:
        sizes = (samples, keys)
        mask = bool_mask(*sizes) if padding == "bool" else torch.randn(sizes, **DOUBLE)
        found["key_padding_mask"] = mask
    return found


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "sequence first"])
def test_attention_equals_one_after_another(
    batch_first: bool, masks: tuple[str | None, str | None], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    samples, length, keys = 3, 4, 5
    head = {"*out_proj*": hl.LowRank(1), "*": hl.Dense()}
    model = model_of(Attends(batch_first=batch_first, **options), head=head)
    batch, g = 0 if batch_first else 1, gamma(samples)
    data = [torch.randn(samples, length, 8, **DOUBLE)]
    data += [torch.randn(samples, keys, options.get(n, 8), **DOUBLE) for n in ("kdim", "vdim")]
    if not batch_first:
        data = [x.transpose(0, 1).contiguous() for x in data]
    given = masks_for(masks, samples, length, keys)
    shared = {name for name, mask in given.items() if len(mask) == length}
    for asked in ({}, {"need_weights": False}, {"average_attn_weights": False}):
        rows: list[Any] = []
        for i in range(samples):
            own = {name: m if name in shared else m[i : i + 1] for name, m in given.items()}
            x = tuple(t.narrow(batch, i, 1) for t in data)
            theta = model.predict(g=g[i])
            rows.append(torch.func.functional_call(model.primary, theta, x, {**own, **asked}))
        here = [hl.PerSample(x, dim=batch) for x in data]
        wrapped = {name: hl.Shared(m) if name in shared else m for name, m in given.items()}
        for _ in range(2):  # watched, and by the plan
            y, scores = model(*here, **wrapped, **asked, g=g)
            assert model.last_run.way == "batch", model.last_run
            expected = torch.cat([y for y, _ in rows], batch)
            close(y, expected)
            close(gradients(model, y), gradients(model, expected))
            if "need_weights" in asked:
                assert scores is None
            else:
                close(scores, torch.cat([scores for _, scores in rows]))


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_causal_attention_equals_one_after_another(need_weights: bool, padding: bool) -> None:
    model, g = model_of(nn.MultiheadAttention(8, 2, batch_first=True)), gamma(3)
    x, causal = torch.randn(3, 4, 8, **DOUBLE), nn.Transformer.generate_square_subsequent_mask(4)
    given = {"is_causal": True, "need_weights": need_weights}
    pad = {"key_padding_mask": torch.arange(4).expand(3, 4) > 2} if padding else {}
    causal = causal.isinf() if padding else causal.double()
    y, _ = model(x, x, x, attn_mask=hl.Shared(causal), **pad, **given, g=g)
    assert model.last_run.way == "batch"
    for i in range(3):
        own, one = x[i : i + 1], {name: mask[i : i + 1] for name, mask in pad.items()}
        expected, _ = model(own, own, own, attn_mask=causal, **one, **given, g=g[i])
        close(y[i : i + 1], expected)


def test_attention_says_what_to_do_with_another_dimension() -> None:
    model, g = model_of(nn.MultiheadAttention(8, 2)), gamma(3)
    x = torch.randn(3, 4, 8, **DOUBLE)
    with pytest.raises(hl.InputError) as error:
        model(x, x, x, g=g)
    for words in ("batch_first=False", "(sequence, batch, features)", "hl.PerSample(x, dim=1)"):
        assert words in str(error.value)


# --- batch norm -------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_takes_its_statistics_over_the_whole_batch_once(affine: bool) -> None:
    primary = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3, affine=affine))
    model, norm = model_of(primary), primary[1]
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    x, g = torch.randn(4, 2, 8, **DOUBLE), gamma(4)
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    theta = model.predict(g=g)
    h = torch.cat(
        [
            nn.functional.conv1d(x[i : i + 1], theta["0.weight"][i], theta["0.bias"][i])
            for i in range(4)
        ]
    )
    own_mean, own_var = h.mean((0, 2)), h.var((0, 2), unbiased=False)
    expected = (h - own_mean[:, None]) / (own_var[:, None] + norm.eps).sqrt()
    if affine:
        expected = expected * theta["1.weight"][..., None] + theta["1.bias"][..., None]
    found = model.bind(g=g)(x)
    close(found, expected)
    close(gradients(model, found), gradients(model, expected))
    close(norm.running_mean, 0.9 * mean + 0.1 * own_mean.detach())
    close(norm.running_var, 0.9 * var + 0.1 * own_var.detach() * 24 / 23)
    assert int(norm.num_batches_tracked) == 1
    with pytest.raises(hl.InputError, match=r"BatchNorm1d '1' in training.*model\.bind"):
        model(x, g=g)
    model.eval()
    close(model(x, g=g), model.bind(g=g)(x))
    assert int(norm.num_batches_tracked) == 1


# --- modes ------------------------------------------------------------------------------------


class Dropped(nn.Module):
    """A layer without a rule, with dropout inside."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.dropout = nn.Parameter(torch.ones(4)), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x * self.gain)


class Last(nn.Module):
    """The output of an LSTM, whose rule runs one sample after another."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.lstm(x)[0]
        return output


@pytest.mark.parametrize("layer", [Dropped, Last])
def test_layers_that_run_by_themselves_have_the_mode_of_the_bound_network(
    layer: Callable[[], nn.Module],
) -> None:
    model, x, g = model_of(nn.Sequential(nn.Linear(4, 4), layer())), torch.randn(3, 5, 4), gamma(3)
    x = x.double()
    net = model.bind(g=g).eval()
    close(net(x), net(x))
    model.eval()
    expected = model(x, g=g)
    close(net(x), expected)
    assert not torch.allclose(net.train()(x), expected)  # the model's mode is another one
    model.train()
    close(net.eval()(x), expected)


# --- plans ------------------------------------------------------------------------------------


class Counted(nn.Module):
    """Counts in its Python code how often it is watched, and how many rows its parts see."""

    def __init__(self, decide: Callable[[Tensor], Any] = lambda mask: None) -> None:
        super().__init__()
        self.shared, self.own = nn.Linear(4, 4), nn.Linear(4, 3)
        self.decide = decide

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.shared(x)
        if mask is not None and self.decide(mask):
            h = h.masked_fill(mask, 0.0)
        return self.own(h)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every call that is watched."""
    tracker = rules.find_rule.__globals__["Lost"].__module__
    module = __import__(tracker, fromlist=["Tracker"])
    calls: list[int] = []
    enter = module.Tracker.__enter__

    def entered(self: Any) -> Any:
        calls.append(1)
        return enter(self)

    monkeypatch.setattr(module.Tracker, "__enter__", entered)
    return calls


def test_a_plan_is_kept_for_calls_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, model = watched(monkeypatch), model_of(Counted())
    for number, (samples, length) in enumerate([(3, 4), (4, 4), (3, 5)], 1):
        x, g = torch.randn(samples, length, 4, **DOUBLE), gamma(samples)
        expected = torch.cat([model(x[i : i + 1], g=g[i]) for i in range(samples)])
        for _ in range(3):
            close(model(x, g=g), expected)
            close(model.bind(g=g)(x), expected)
        assert len(calls) == number


@pytest.mark.parametrize("rows", [1, 2])
def test_a_plan_is_kept_for_sweeps_alike(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    calls, model = watched(monkeypatch), model_of(Counted())
    x, g = torch.randn(rows, 5, 4, **DOUBLE), gamma(3)
    expected = torch.stack([model(x, g=one) for one in g])
    for _ in range(3):
        close(model.sweep(x, g=g), expected)
    assert len(calls) == 1


def test_a_plan_that_reads_is_followed_until_it_reads_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, model = watched(monkeypatch), model_of(Counted(lambda mask: bool(mask.any())))
    x, g = torch.randn(3, 5, 4, **DOUBLE), gamma(3)
    full, padded = torch.zeros(3, 5, 1, dtype=torch.bool), torch.arange(15).view(3, 5, 1) > 11
    counts = []
    for mask in (full, full, padded, padded, full, full):
        found = model(x, mask, g=g)
        assert model.last_run.way == "batch"
        expected = [model(x[i : i + 1], mask[i : i + 1], g=g[i]) for i in range(3)]
        close(found, torch.cat(expected))
        counts.append(len(calls))
    assert counts == [1, 1, 2, 2, 3, 3]


def test_threads_use_one_model_and_one_bound_network() -> None:
    model = model_of(Counted())
    data = [(torch.randn(3, n, 4, **DOUBLE), torch.rand(3, **DOUBLE)) for n in (3, 4, 5, 6)]
    held = gamma(3)
    net = model.bind(g=held)
    wrong: list[Any] = []

    def work(own: list[tuple[Tensor, Tensor]]) -> None:
        try:
            for _ in range(15):
                for x, g in own:
                    close(model(x, g=g), torch.cat([model(x[i : i + 1], g=g[i]) for i in range(3)]))
                    rows = [model(x[i : i + 1], g=held[i]) for i in range(3)]
                    close(net(x), torch.cat(rows))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(own,)) for own in (data, data[::-1], data[1:])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Layouts(nn.Module):
    """A checkpointed part that sees the samples where its caller says."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.last = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)

    def forward(self, x: Tensor, turned: bool) -> Tensor:
        x = x.transpose(0, 1).contiguous() if turned else x
        h = checkpoint(self.part, x, use_reentrant=False)
        return self.last(h.transpose(0, 1) if turned else h)


def test_a_checkpoint_is_run_again_after_calls_of_other_layouts() -> None:
    model, g = model_of(Layouts()), gamma(3)
    x = torch.randn(3, 5, 4, **DOUBLE)
    net = model.bind(g=g)
    found = [net(x, False), net(x, True), net(x[:, :3], False)]
    expected = [
        torch.cat([model(y[i : i + 1], False, g=g[i]) for i in range(3)]) for y in (x, x, x[:, :3])
    ]
    close(found, expected)
    for y, wanted in zip(found, expected, strict=True):
        close(gradients(model, y), gradients(model, wanted))


def test_a_checkpoint_of_two_layouts_of_one_shape_is_refused() -> None:
    model, g = model_of(Layouts()), gamma(3)
    x = torch.randn(3, 3, 4, **DOUBLE)
    net = model.bind(g=g)
    found = [net(x, False), net(x, True)]
    expected = torch.cat([model(x[i : i + 1], False, g=g[i]) for i in range(3)])
    for y in found:
        close(y, expected)
        with pytest.raises(hl.BindError, match="outside of a call of the whole network"):
            gradients(model, y)


# --- sweeps -----------------------------------------------------------------------------------


class Encoder(nn.Module):
    """A part without weights per sample, which counts the rows that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.rows = nn.Linear(4, 4), Rows()

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(torch.tanh(self.linear(x)))


class Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        ROWS.append(len(x))
        return x


ROWS: list[int] = []


@pytest.mark.parametrize("convolved", [False, True])
def test_a_sweep_computes_what_all_sets_share_once(convolved: bool) -> None:
    last = [nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3)] if convolved else [nn.Linear(4, 3)]
    model = model_of(nn.Sequential(Encoder(), *last), targets=f"{len(last)}.*")
    x, g = torch.randn(5, 4, **DOUBLE), gamma(7)
    expected = torch.stack([model(x, g=each) for each in g])
    for watching in (True, False):
        ROWS.clear()
        found = model.sweep(x, g=g)
        seen = list(ROWS)
        close(found, expected)
        close(gradients(model, found), gradients(model, expected))
        assert model.last_run.way == "batch"
        # Once to find out by shapes alone, and once for one set.
        assert seen == ([35, 5] if watching else [5])


def test_a_sweep_draws_other_numbers_for_every_set_where_a_part_is_random() -> None:
    primary = nn.Sequential(nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5)), nn.Linear(50, 50))
    model = model_of(primary, targets="1.*")
    x, g = torch.ones(2, 4, **DOUBLE), torch.full((3,), 0.5, **DOUBLE)
    y = model.sweep(x, g=g)
    assert model.last_run.way == "batch"
    assert not torch.equal(y[0], y[1])
    model.eval()
    y = model.sweep(x, g=g)
    close(y[0], y[1])


class Drawing(nn.Module):
    """Draws numbers, and then convolves."""

    def __init__(self, draw: Callable[[Tensor], Tensor] | nn.MultiheadAttention) -> None:
        super().__init__()
        self.draw, self.convolution = draw, nn.Conv1d(4, 4, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        drawn: Any = self.draw(x, x, x)[0] if isinstance(self.draw, nn.Module) else self.draw(x)
        return drawn, self.convolution(drawn)


@pytest.mark.parametrize(
    "draw",
    [
        torch.nn.functional.dropout,
        lambda x: x + torch.randn_like(x),
        lambda x: x.clone().add_(torch.rand(x.shape, dtype=x.dtype)),
        nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True),
    ],
    ids=["dropout", "noise", "noise in place", "attention"],
)
def test_what_is_drawn_for_every_set_is_not_taken_for_copies(draw: Any) -> None:
    model = model_of(Drawing(draw), targets="convolution.*")
    x, g = torch.ones(2, 4, 4, **DOUBLE), gamma(3)
    drawn, found = model.sweep(x, g=g)
    assert model.last_run.way == "batch"
    assert not torch.equal(drawn[0], drawn[1])
    weights = model.predict(g=g)["convolution.weight"]
    close(found, torch.einsum("soc,sbct->sbot", weights.squeeze(-1), drawn))


class Attending(nn.Module):
    """Attends without dropout, which draws nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.rows = nn.Linear(4, 4), Rows()

    def forward(self, x: Tensor) -> Tensor:
        h = self.rows(self.linear(x))
        return nn.functional.scaled_dot_product_attention(h, h, h)


def test_a_sweep_attends_once_if_nothing_is_drawn() -> None:
    model = model_of(nn.Sequential(Attending(), nn.Linear(4, 3)), targets="1.*")
    x, g = torch.randn(2, 3, 5, 4, **DOUBLE), gamma(3)
    expected = torch.stack([model(x, g=each) for each in g])
    ROWS.clear()
    close(model.sweep(x, g=g), expected)
    assert ROWS == [6, 2]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "layer", [nn.GRU(4, 3), nn.MultiheadAttention(4, 2)], ids=["GRU", "attention"]
)
@pytest.mark.filterwarnings("ignore:The primary cannot run once")
def test_a_sweep_takes_sequences_first(layer: nn.Module, wrapped: bool) -> None:
    model, g = model_of(layer), gamma(3)
    x = torch.randn(5, 2, 4, **DOUBLE)
    given = [hl.PerSample(x, 1) if wrapped else x] * (1 if isinstance(layer, nn.GRU) else 3)
    expected = [model(*given, g=each)[0] for each in g]
    close(model.sweep(*given, g=g)[0], torch.stack(expected))


def test_a_sweep_that_runs_apart_takes_wrapped_arguments() -> None:
    model, g = model_of(nn.Bilinear(4, 4, 2)), gamma(1)
    x, y = torch.randn(2, 3, 4, **DOUBLE)
    close(model.sweep(x, hl.Shared(y), g=g)[0], model(x, y, g=g[0]))


# --- what a layer does not have ---------------------------------------------------------------


@pytest.mark.parametrize("head", [hl.Dense(), hl.LowRank(1), hl.ChannelScale()])
@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_that_is_not_in_the_table_is_refused(head: hl.Head, index: int) -> None:
    model, g = model_of(nn.Sequential(nn.Embedding(5, 4)), head=head), gamma(3)
    with pytest.raises(
        hl.InputError, match=rf"0 is an embedding of 5 rows.*index {index}; expected.*from 0 to 4"
    ):
        model(torch.tensor([1, index, 0] if index < 0 else [index, 1, 0]), g=g)


def test_where_indices_are_not_read_the_lookup_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "is_read", lambda value: False)
    model, g = model_of(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))), gamma(3)
    net, tokens = model.bind(g=g), torch.tensor([1, 4, 0])
    close(net(tokens), torch.cat([model(tokens[i : i + 1], g=g[i]) for i in range(3)]))
    for wrong in ([5, 1, 0], [1, -1, 0]):
        with pytest.raises(IndexError, match="out of range"):
            net(torch.tensor(wrong))


class LooksUp(nn.Module):
    """Uses a predicted parameter in its own forward, so that every sample runs by itself."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table, self.gain = nn.Embedding(5, 4, padding), nn.Parameter(torch.ones(4))

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.table(tokens) * self.gain
        return y


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.filterwarnings("ignore:The primary cannot run once")
def test_under_vmap_an_index_that_is_not_in_the_table_is_refused(padding: int | None) -> None:
    model, g, tokens = model_of(LooksUp(padding)), gamma(3), torch.tensor([2, 4, 0])
    close(model(tokens, g=g), torch.cat([model(tokens[i : i + 1], g=g[i]) for i in range(3)]))
    model(tokens, g=g)
    assert model.last_run.way == "vmap"
    for wrong in ([5, 1, 0], [1, -1, 0]):
        with pytest.raises(IndexError, match="out of range"):
            model(torch.tensor(wrong), g=g)


class Normed(nn.Module):
    """Owns a predicted parameter, and a layer that mixes samples."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.norm = nn.Parameter(torch.ones(3, 1)), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x * self.gain)
        return y


def test_statistics_of_one_sample_are_not_taken_for_those_of_the_batch() -> None:
    model, g = model_of(nn.Sequential(nn.Conv1d(2, 3, 1), Normed())), gamma(3)
    x = torch.randn(3, 2, 4, **DOUBLE)
    with pytest.raises(
        hl.InputError, match=r"'1\.norm' in training.*put 'gain' into a module without this layer"
    ):
        model.bind(g=g)(x)
    assert int(model.primary[1].norm.num_batches_tracked) == 0
    expected = torch.cat([model.eval()(x[i : i + 1], g=g[i]) for i in range(3)])
    close(model.bind(g=g)(x), expected)


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * self.gain


def test_a_watched_call_updates_buffers_once() -> None:
    model = model_of(nn.Sequential(nn.Linear(4, 4), Counting()))
    for calls in (1, 2):
        model(torch.randn(3, 4, **DOUBLE), g=gamma(3))
        assert model.last_run.way == "batch"
        assert int(model.primary[1].calls) == calls


def test_autocast_gives_low_rank_convolutions_their_dtype() -> None:
    model = model_of(nn.Conv2d(3, 8, 3), head=hl.LowRank(1)).float()
    x, g = torch.randn(3, 3, 5, 5), gamma(3).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x, g=g).dtype == model(x, g=0.5).dtype == torch.bfloat16


# --- none -------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [hl.Dense(), hl.ChannelScale()])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Conv2d(4, 3, 3), (4, 5, 5)),
        (nn.ConvTranspose1d(4, 3, 2), (4, 5)),
        (nn.Sequential(nn.Linear(4, 4), Dropped()), (4,)),
    ],
    ids=["Linear", "Conv2d", "ConvTranspose1d", "by itself"],
)
def test_a_batch_of_no_samples_gives_what_the_network_gives_for_none(
    layer: nn.Module, shape: tuple[int, ...], head: hl.Head
) -> None:
    model, none, g = model_of(layer, head=head), torch.zeros(0, *shape, **DOUBLE), gamma(0)
    expected = model.primary(none)
    for found in (model(none, g=g), model.bind(g=g)(none)):
        assert found.shape == expected.shape
        found.sum().backward()
    x = torch.zeros(2, *shape, **DOUBLE)
    assert model.sweep(x, g=g).shape == (0, *model.primary(x).shape)

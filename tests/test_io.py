"""Files: everything comes back bit for bit, or is refused in words with nothing changed."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.io import container, files
from hyperlight.trunk import ACTIVATIONS
from tests.models import PRIMARIES, Tied, convolutional, mlp, vectors
from tests.reference.files import rewrite

SPACE = {"g": hl.Uniform(0.0, 1.0)}


def stirred(model: nn.Module) -> Any:
    """Every tensor away from where it starts, as training leaves it."""
    with torch.no_grad():
        for tensor in {id(t): t for t in model.state_dict(keep_vars=True).values()}.values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def contents(module: nn.Module) -> dict[str, tuple[torch.dtype, list[int], str]]:
    """Every tensor of a state dict to the bit."""
    found = {}
    for name, tensor in module.state_dict().items():
        plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        octets = bytes(plain.view(torch.uint8).tolist())
        found[name] = (tensor.dtype, list(tensor.shape), hashlib.sha256(octets).hexdigest())
    return found


# --- what is saved comes back -----------------------------------------------------


@pytest.mark.parametrize("name", PRIMARIES)
def test_every_primary_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    make, data = PRIMARIES[name]
    model = stirred(hl.hypernetize(make(), SPACE)).eval()
    path = tmp_path / "model.safetensors"
    hl.save(model, path)
    fresh = make()
    places = [(id(p), p.data_ptr()) for p in fresh.parameters()]
    random = torch.get_rng_state()
    again = hl.load(path, fresh).eval()
    assert torch.equal(torch.get_rng_state(), random)
    assert again.primary is fresh
    assert [(id(p), p.data_ptr()) for p in fresh.parameters()] == places
    assert contents(again) == contents(model)
    x = data()
    for g in (0.0, 0.3, 1.0):
        assert torch.equal(again(x, g=g), model(x, g=g))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def _regularized() -> nn.Sequential:
    inner = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    return nn.Sequential(nn.Linear(3, 4), inner, nn.Linear(4, 2))


def _modes(module: nn.Module) -> dict[str, bool]:
    return {name: part.training for name, part in module.named_modules()}


@pytest.mark.parametrize("part", ["", "primary", "primary.1.1", "hypernet", "hypernet.trunk"])
@pytest.mark.parametrize("mode", [True, False])
def test_a_model_comes_back_in_the_mode_in_which_it_was_saved(
    tmp_path: Path, part: str, mode: bool
) -> None:
    model = hl.hypernetize(_regularized(), SPACE).train(not mode)
    model.get_submodule(part).train(mode)
    hl.save(model, tmp_path / "m")
    for fresh in (_regularized(), _regularized().eval()):
        again = hl.load(tmp_path / "m", fresh)
        assert _modes(again) == _modes(model)
    hl.save(model.hypernet, tmp_path / "h")
    assert _modes(hl.load(tmp_path / "h")) == _modes(model.hypernet)


def test_a_model_saved_for_use_predicts_at_once(tmp_path: Path) -> None:
    model = hl.hypernetize(_regularized(), SPACE).eval()
    hl.save(model, tmp_path / "m")
    x = torch.randn(8, 3)
    assert torch.equal(hl.load(tmp_path / "m", _regularized())(x, g=0.3), model(x, g=0.3))


def test_a_file_without_modes_leaves_that_of_the_primary(tmp_path: Path) -> None:
    hl.save(hl.hypernetize(_regularized(), SPACE).eval(), tmp_path / "m")
    rewrite(tmp_path / "m", lambda tensors, about: about.pop("modes"))
    again = hl.load(tmp_path / "m", _regularized().eval())
    assert again.training
    assert again.hypernet.training
    assert not again.primary.training


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "classical": {"encoding": None, "residual": False},
    "encoding alone": {"residual": False},
    "residual alone": {"encoding": None},
    "several encodings": {"encoding": {"g*": hl.CosSin()}},
    "paper's encoding": {"encoding": hl.CosSin(per_input=True)},
    "low rank": {"head": hl.LowRank(1)},
    "chunked": {"head": hl.Chunked(5)},
    "per layer": {"head": hl.PerLayer(3, 5)},
    "per layer, low rank": {"head": hl.PerLayer(3, 5, rank=1)},
    "channel scale": {"head": hl.ChannelScale()},
    "mixture": {"head": {"0.*": hl.LowRank(1), "*.bias": hl.Dense(), "*": hl.Chunked(4)}},
    "no hidden layers": {"hidden": ()},
    "deep with skip": {"hidden": (8, 8, 8), "skip": True},
    "activation with options": {"activation": nn.LeakyReLU(0.3)},
    "activation with weights": {"activation": nn.PReLU(init=0.4)},
    "some targets": {"targets": "2.*"},
    "double": {"dtype": torch.float64},
    "half": {"dtype": torch.bfloat16},
    "relative": {"init": "relative"},
    **{f"activation {name}": {"activation": name} for name in ACTIVATIONS},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_every_setting_comes_back(settings: dict[str, Any], tmp_path: Path) -> None:
    model = stirred(hl.hypernetize(mlp(), SPACE, **settings))
    hl.save(model, tmp_path / "m")
    again = hl.load(tmp_path / "m", mlp())
    assert repr(again) == repr(model)
    assert contents(again) == contents(model)
    x = vectors()
    assert torch.equal(again(x, g=0.3), model(x, g=0.3))


SPACES = st.one_of(
    st.builds(
        lambda low, width, shape, ends: hl.Uniform(low, low + width, shape, ends),
        st.integers(-1000, 1000).map(float),
        st.floats(1e-3, 1e3),
        st.sampled_from([(), 2, (2, 3)]),
        st.floats(0.0, 1.0),
    ),
    st.builds(lambda low: hl.LogUniform(low, 10.0), st.floats(1e-6, 1.0)),
    st.builds(hl.Normal, st.sampled_from([(), 3]), st.floats(-9, 9), st.floats(0.1, 9)),
    st.builds(hl.Vector, st.integers(1, 5), st.floats(-9, 9), st.floats(0.1, 9)),
    st.builds(hl.Simplex, st.integers(2, 5), st.floats(0.1, 9)),
    st.builds(hl.Categorical, st.integers(1, 9), st.sampled_from([(), 2]), st.none()),
    st.builds(hl.Categorical, st.integers(1, 9), st.just(()), st.integers(2, 9)),
)
PARTS = st.one_of(
    st.builds(hl.Dense),
    st.builds(hl.LowRank, st.integers(1, 3)),
    st.builds(hl.Chunked),
    st.builds(hl.PerLayer, st.integers(1, 3), st.integers(1, 3), st.none() | st.integers(1, 2)),
)


@settings(max_examples=30, deadline=None)
@given(
    inputs=st.dictionaries(st.text(min_size=1).filter(str.isidentifier), SPACES, min_size=1),
    hidden=st.lists(st.integers(1, 6), max_size=3),
    activation=st.sampled_from([*ACTIVATIONS, nn.ELU(0.5), nn.GELU("tanh"), nn.Softplus(2.0)]),
    encoding=st.sampled_from([None, hl.CosSin(), hl.CosSin(per_input=True)]),
    head=st.one_of(PARTS, st.builds(lambda a, b: {"w*": a, "*": b}, PARTS, PARTS)),
    skip=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_a_hypernetwork_alone_comes_back_whatever_its_settings(
    inputs: dict[str, hl.Input], dtype: torch.dtype, **rest: Any
) -> None:
    shapes = {"w": (4, 3), "ä": (2,), "w.scalar": ()}
    try:
        net = hl.HyperNet(inputs, shapes, dtype=dtype, **rest)
    except hl.ConfigurationError:  # an input named as a Python keyword
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net")
        hl.save(net, path)
        random = torch.get_rng_state()
        again = hl.load(path)
        assert torch.equal(torch.get_rng_state(), random)
    assert type(again) is hl.HyperNet
    assert again.inputs == net.inputs
    assert list(again.inputs) == list(net.inputs)
    assert list(again.shapes.items()) == list(net.shapes.items())
    assert repr(again) == repr(net)
    assert contents(again) == contents(net)
    gamma = net.sample((2,))
    for name, tensor in again(**gamma).items():
        assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(net(**gamma)[name]))


def test_a_seed_gives_what_it_gave_after_a_load(tmp_path: Path) -> None:
    hl.save(hl.hypernetize(mlp(), SPACE), tmp_path / "m")
    primary = mlp()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    hl.load(tmp_path / "m", primary)
    assert torch.equal(torch.rand(4), expected)


class Zoo(nn.Module):
    """Buffers of every dtype and layout that a module may hold."""

    DTYPES = (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
        torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
        torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        for dtype in self.DTYPES:
            name = str(dtype).replace(".", "_")
            octets = torch.randint(0, 2, (5 * dtype.itemsize,), dtype=torch.uint8)
            self.register_buffer(name, octets.view(dtype))
            self.register_buffer(f"{name}_scalar", octets.view(dtype)[0].clone())
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("transposed", torch.randn(3, 4).T)
        self.register_buffer("strided", torch.randn(8)[::2])
        self.register_buffer("expanded", torch.randn(1, 3).expand(2, 3))
        self.register_buffer("last", torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
        # one memory, read in several ways
        self.register_buffer("square", torch.randn(3, 3))
        self.register_buffer("square_transposed", self.square.T)
        self.register_buffer("complex", torch.randn(3, dtype=torch.complex64))
        self.register_buffer("conjugate", self.complex.conj())
        self.register_buffer("imaginary", self.complex.imag)
        self.register_buffer("negative", self.complex.conj().imag)
        self.halves = nn.ParameterList(torch.randn(8).chunk(2))
        self.register_buffer("passing", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_tensors_of_every_dtype_and_layout_come_back(tmp_path: Path) -> None:
    model = hl.hypernetize(Zoo(), SPACE, "linear.*")
    hl.save(model, tmp_path / "m")
    fresh = Zoo()
    for name, buffer in list(fresh.named_buffers()):  # each in memory of its own
        setattr(fresh, name, buffer.resolve_conj().resolve_neg().clone())
    again = hl.load(tmp_path / "m", fresh)
    assert contents(again) == contents(model)
    # and other readers agree, where the format has a code for the dtype
    read = safetensors.torch.load_file(tmp_path / "m")
    for name, tensor in model.state_dict().items():
        if tensor.dtype in container.CODES:
            assert torch.equal(read[name], tensor), name
    assert read["primary.torch_complex128"].dtype == torch.uint8
    # every tensor starts where its dtype may, for readers that map the file
    whole = (tmp_path / "m").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    assert size % 8 == 0
    for name, tensor in read.items():
        assert header[name]["data_offsets"][0] % tensor.dtype.itemsize == 0, name


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    inputs = {"b": hl.LogUniform(1e-4, 1.0), "a": hl.Categorical(3)}
    model = hl.hypernetize(mlp(), inputs, "0.*", hidden=(4,), head=hl.LowRank(2))
    hl.save(model, tmp_path / "m")
    with safetensors.safe_open(tmp_path / "m", "pt") as file:
        about = json.loads(file.metadata()["hyperlight"])
        assert set(file.keys()) == set(model.state_dict())
    assert about == {
        "format": "hyperlight",
        "version": 3,
        "library": hl.__version__,
        "primary": "Sequential",
        "structure": {
            "": ["Sequential", {}],
            "0": ["Linear", {"in_features": 3, "out_features": 5}],
            "1": ["Tanh", {}],
            "2": ["Linear", {"in_features": 5, "out_features": 2}],
        },
        "inputs": {
            "b": {
                "class": "LogUniform",
                "config": {"low": 1e-4, "high": 1.0, "shape": [], "endpoints": 0.0},
            },
            "a": {"class": "Categorical", "config": {"n": 3, "shape": [], "features": 3}},
        },
        "shapes": {"0.weight": [5, 3], "0.bias": [5]},
        "hidden": [4],
        "directions": None,
        "activation": {
            "class": "leaky_relu",
            "config": {"inplace": False, "negative_slope": 0.01},
        },
        "skip": False,
        "trunk": None,
        "encoders": None,
        "encoding": {"class": "CosSin", "config": {"per_input": False}},
        "head": {"class": "LowRank", "config": {"rank": 2}},
        "dtype": "float32",
        "aliases": {},
        "raw": {},
        "left_out": {},
        "modes": {"": True},
    }
    assert list(about["inputs"]) == ["b", "a"]


def test_every_public_class_can_be_named_in_a_file() -> None:
    """Except an input that holds a module, which is code."""
    public = [getattr(hl, name) for name in hl.__all__ if name != "Encoded"]
    for base, known in (
        (hl.Input, files._INPUTS),
        (hl.Encoding, files._ENCODINGS),
        (hl.Head, files._HEADS),
    ):
        own = {c for c in public if isinstance(c, type) and issubclass(c, base) and c is not base}
        assert set(known.values()) == own


# --- ties ---------------------------------------------------------------------------


class Untied(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.out.weight = nn.Parameter(self.embed.weight.detach().clone())


def test_tied_weights_are_written_once_and_come_back_tied(tmp_path: Path) -> None:
    model = stirred(hl.hypernetize(Tied(), SPACE))
    hl.save(model, tmp_path / "m")
    assert "primary.out.weight" not in safetensors.torch.load_file(tmp_path / "m")
    again = hl.load(tmp_path / "m", Tied())
    assert again.primary.out.weight is again.primary.embed.weight
    with pytest.warns(UserWarning, match="is a Tied in the file, a Untied here"):
        untied = hl.load(tmp_path / "m", Untied())
    assert torch.equal(untied.primary.out.weight, model.primary.out.weight)


def test_two_tensors_do_not_become_one(tmp_path: Path) -> None:
    model = stirred(hl.hypernetize(Untied(), SPACE, "embed.*"))
    hl.save(model, tmp_path / "m")
    primary = Tied()
    before = contents(primary)
    with pytest.raises(hl.FormatError, match=r"'out.weight' and 'embed.weight' are one tensor"):
        hl.load(tmp_path / "m", primary)
    assert contents(primary) == before


def test_an_extended_model_comes_back(tmp_path: Path) -> None:
    spaces = {"a": hl.Categorical(3, 2), "b": hl.Categorical(20, features=5), "c": hl.Uniform()}
    model = hl.hypernetize(mlp(), spaces)
    model.extend("a", 2)
    model.extend("b", 4)
    stirred(model)
    hl.save(model, tmp_path / "m")
    again = hl.load(tmp_path / "m", mlp())
    assert contents(again) == contents(model)
    assert again.inputs == model.inputs
    assert again.inputs["b"] == hl.Categorical(24, features=5)
    gamma = {"a": torch.tensor([4, 0]), "b": 23, "c": 0.3}
    x = vectors()
    assert torch.equal(again(x, **gamma), model(x, **gamma))
    again.extend("b")
    assert again.inputs["b"].n == 25
    # A file from before the extension holds the model of that time.
    fresh = hl.hypernetize(mlp(), spaces)
    with pytest.raises(RuntimeError, match="size mismatch for hypernet.embeddings.0.weight"):
        fresh.load_state_dict(model.state_dict())


def test_a_hypernetwork_of_an_extended_model_comes_back(tmp_path: Path) -> None:
    def inner(n: int) -> hl.HyperModel:
        return hl.hypernetize(mlp(), {"a": hl.Categorical(n, features=3)})

    extended = inner(3)
    extended.extend("a")
    model = stirred(hl.hypernetize(extended, SPACE, "hypernet.*"))
    hl.save(model, tmp_path / "m")
    again = hl.load(tmp_path / "m", inner(4))
    x = vectors()
    assert torch.equal(again(x, a=3, g=0.3), model(x, a=3, g=0.3))
    with pytest.raises(hl.FormatError, match=r"'hypernet.embeddings.0.weight' is \(4, 3\)"):
        hl.load(tmp_path / "m", inner(3))


# --- hierarchies ----------------------------------------------------------------------


def test_hypernetworks_of_hypernetworks_come_back(tmp_path: Path) -> None:
    def inner() -> hl.HyperModel:
        return hl.hypernetize(mlp(), {"a": hl.Normal(2)})

    x, a = vectors(), torch.randn(2)
    model = stirred(hl.hypernetize(inner(), SPACE, "hypernet.*"))
    hl.save(model, tmp_path / "m")
    again = hl.load(tmp_path / "m", inner())
    assert torch.equal(again(x, a=a, g=0.3), model(x, a=a, g=0.3))
    model = stirred(hl.hypernetize(inner().hypernet, SPACE))
    hl.save(model, tmp_path / "m")
    again = hl.load(tmp_path / "m", inner().hypernet)
    for name, tensor in again(a=a, g=0.3).items():
        assert torch.equal(tensor, model(a=a, g=0.3)[name])


# --- adapters -------------------------------------------------------------------------


def adapted(path: Path) -> tuple[hl.HyperModel, dict[str, Tensor]]:
    primary = stirred(convolutional())
    primary.requires_grad_(False)
    primary[4].bias.requires_grad_(True)
    model = stirred_hypernet(hl.hypernetize(primary, SPACE))
    hl.save(model, path, frozen=False)
    return model, {name: t.clone() for name, t in primary.state_dict().items()}


def stirred_hypernet(model: hl.HyperModel) -> hl.HyperModel:
    stirred(model.hypernet)
    return model


def test_an_adapter_leaves_out_what_is_frozen(tmp_path: Path) -> None:
    model, pretrained = adapted(tmp_path / "m")
    held = {n for n in safetensors.torch.load_file(tmp_path / "m") if n.startswith("primary.")}
    assert held == {"primary.4.bias"} | {f"primary.{n}" for n, _ in model.primary.named_buffers()}
    primary = convolutional()
    primary.load_state_dict(pretrained)
    with torch.no_grad():
        primary[4].bias.zero_()  # this one is in the file
    again = hl.load(tmp_path / "m", primary)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(again.eval()(x, g=0.3), model.eval()(x, g=0.3))
    assert contents(again) == contents(model)


def test_an_adapter_is_refused_by_another_network_and_says_which_tensors(tmp_path: Path) -> None:
    _, pretrained = adapted(tmp_path / "m")
    primary = convolutional()
    primary.load_state_dict(pretrained)
    with torch.no_grad():
        primary[0].weight[0, 0, 0, 0] += 1e-6
        primary[1].bias[0] += 1.0
    before = contents(primary)
    with pytest.raises(hl.FormatError) as error:
        hl.load(tmp_path / "m", primary)
    for words in ("frozen=False", "other values", "'0.weight', '1.bias' of 5", "Load the weights"):
        assert words in str(error.value)
    assert contents(primary) == before
    with pytest.raises(hl.FormatError, match=r"the primary has no .*'4.bias' and 3 more\."):
        hl.load(tmp_path / "m", nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("other", [torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.int32)])
def test_an_adapter_knows_shapes_and_dtypes_of_what_was_left_out(
    other: Tensor, tmp_path: Path
) -> None:
    def primary(frozen: Tensor) -> nn.Module:
        made = mlp()
        made.register_parameter("frozen", nn.Parameter(frozen, requires_grad=False))
        return made

    hl.save(hl.hypernetize(primary(torch.zeros(3, 2)), SPACE, "0.*"), tmp_path / "m", frozen=False)
    assert hl.load(tmp_path / "m", primary(torch.zeros(3, 2)))
    with pytest.raises(hl.FormatError, match="other values than those: 'frozen' of 1 left out"):
        hl.load(tmp_path / "m", primary(other))


# --- devices ------------------------------------------------------------------------------


def test_a_model_is_moved_to_the_device_that_is_asked_for(tmp_path: Path) -> None:
    model = saved(tmp_path / "m")
    moved = hl.load(tmp_path / "m", mlp(), device="meta")
    assert {t.device.type for t in moved.state_dict().values()} == {"meta"}
    hl.save(model.hypernet, tmp_path / "h")
    assert next(hl.load(tmp_path / "h", device="meta").parameters()).is_meta


def test_a_device_that_is_not_there_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    primary = mlp()
    before = contents(primary)
    with pytest.raises((RuntimeError, AssertionError)):  # whatever torch says
        hl.load(tmp_path / "m", primary, device="cuda:77")
    assert contents(primary) == before


# --- written whole or not at all --------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    hl.save(hl.hypernetize(mlp(), SPACE), path)
    old = path.read_bytes()
    real, calls = container.feed, []

    def failing(tensor: Tensor, *sinks: Callable[[memoryview], object]) -> None:
        calls.append(tensor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(tensor, *sinks)

    monkeypatch.setattr(container, "feed", failing)
    with pytest.raises(OSError, match="No space left"):
        hl.save(hl.hypernetize(mlp(), SPACE), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    model = hl.hypernetize(mlp(), SPACE)
    with open(path, "rb") as reader:  # who reads the old file goes on reading it
        hl.save(model, path)
        assert reader.read() == old
    assert contents(hl.load(path, mlp())) == contents(model)


def test_a_link_stays_a_link_and_the_mode_is_the_usual_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "m").symlink_to(tmp_path / "folder" / "real")
    hl.save(hl.hypernetize(mlp(), SPACE), tmp_path / "m")
    assert (tmp_path / "m").is_symlink()
    (tmp_path / "plain").touch()
    assert (tmp_path / "folder" / "real").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_no_numpy_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); sys.modules['numpy'] = None\n"
        "import torch, hyperlight as hl\n"
        "net = hl.HyperNet({'g': hl.Normal()}, {'w': (2,)})\n"
        f"hl.save(net, {str(tmp_path / 'm')!r})\n"
        f"again = hl.load({str(tmp_path / 'm')!r})\n"
        "assert torch.equal(again(g=0.3)['w'], net(g=0.3)['w'])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_encodings_by_input_come_back(tmp_path: Path) -> None:
    inputs = {"a": hl.Uniform(0.0, 1.0), "z": hl.Normal(3)}
    gamma = {"a": 0.3, "z": torch.randn(3)}
    net = hl.HyperNet(inputs, {"w": (2,)}, encoding={"z": None, "?": hl.CosSin(per_input=True)})
    hl.save(net, tmp_path / "m")
    assert torch.equal(hl.load(tmp_path / "m")(**gamma)["w"], net(**gamma)["w"])
    own = {"z": Fourier(3), "*": hl.CosSin()}
    net = hl.HyperNet(inputs, {"w": (2,)}, encoding=own)
    hl.save(net, tmp_path / "m")
    words = re.escape(
        "Pass it to load: encoding={'z': Fourier(...), '*': CosSin(per_input=False)}."
    )
    with pytest.raises(hl.FormatError, match=words):
        hl.load(tmp_path / "m")
    again = hl.load(tmp_path / "m", encoding=own)
    assert torch.equal(again(**gamma)["w"], net(**gamma)["w"])
    with pytest.raises(hl.FormatError, match="encoding was {'a': "):
        hl.load(tmp_path / "m", encoding={"a": hl.CosSin(), "z": Fourier(3)})


# --- settings of one's own ----------------------------------------------------------------


class Fourier(nn.Module):
    """An encoding of a user's, with a buffer that is not in the state dict."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("rates", torch.arange(1.0, count + 1), persistent=False)
        self.gain = nn.Parameter(torch.ones(count))

    def forward(self, u: Tensor) -> Tensor:
        return (torch.sin(u[..., None] * self.rates) * self.gain).flatten(-2)


class Described(Fourier):
    def config(self) -> dict[str, Any]:
        return {"count": len(self.gain)}


class OwnHead(hl.Dense):
    """A head of a user's; its table is not in the state dict."""

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        super().make(dtype, device)
        self.register_buffer("table", torch.full((), 2.0, dtype=dtype), persistent=False)

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        return {name: t * self.table for name, t in super().predict(features).items()}


class Mixed(hl.LowRank):
    """A head with the name and arguments of another."""

    def config(self) -> dict[str, Any]:
        return {"rank": self.rank, "heads": 3}


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class Angle(hl.Uniform):
    pass


OWN: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "encoding": (
        {"encoding": Fourier(3)},
        {"encoding": Fourier(3)},
        ["the class Fourier", "Pass it to load: encoding=Fourier(...)."],
    ),
    "encoding with config": (
        {"encoding": Described(3)},
        {"encoding": Described(3)},
        ["the class Described", "Pass it to load: encoding=Described(count=3)."],
    ),
    "head": (
        {"head": OwnHead()},
        {"head": OwnHead()},
        ["the class OwnHead", "Pass it to load: head=OwnHead()."],
    ),
    "head in a mixture": (
        {"head": {"0.*": OwnHead(), "*": hl.LowRank(2)}},
        {"head": {"0.*": OwnHead(), "*": hl.LowRank(2)}},
        ["the class Mixed", "Pass it to load: head={'0.*': OwnHead(), '*': LowRank(rank=2)}."],
    ),
    "head with a name of ours": (
        {"head": Mixed(1)},
        {"head": Mixed(1)},
        ["the class Mixed", "Pass it to load: head=Mixed(rank=1, heads=3)."],
    ),
    "activation": (
        {"activation": Sine},
        {"activation": Sine()},
        ["the class Sine", "Pass it to load: activation=Sine(...)."],
    ),
    "activation of torch": (
        {"activation": nn.Hardswish()},
        {"activation": nn.Hardswish},
        ["the class Hardswish", "Pass it to load: activation=Hardswish(...)."],
    ),
    "input": (
        {"inputs": {"g": Angle(0.0, 1.0)}},
        {"inputs": {"g": Angle(0.0, 1.0)}},
        ["the class Angle", "Pass it to load: inputs={'g': Angle(low=0.0, high=1.0"],
    ),
}


@pytest.mark.parametrize(("made", "given", "words"), OWN.values(), ids=OWN.keys())
def test_settings_of_ones_own_are_asked_for(
    made: dict[str, Any], given: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    model = stirred(hl.hypernetize(mlp(), **{"inputs": SPACE, **made}))
    hl.save(model, tmp_path / "m")
    primary = mlp()
    before = contents(primary)
    with pytest.raises(hl.FormatError) as error:
        hl.load(tmp_path / "m", primary)
    for word in [*words, str(tmp_path / "m")]:
        assert word in str(error.value)
    assert contents(primary) == before
    again = hl.load(tmp_path / "m", primary, **given)
    x = vectors()
    assert torch.equal(again(x, g=0.3), model(x, g=0.3))
    assert repr(again) == repr(model)


@pytest.mark.parametrize(
    ("made", "given", "words"),
    [
        ({"encoding": Described(3)}, {"encoding": Described(4)}, "count=4); expected Described(c"),
        ({"encoding": Described(3)}, {"encoding": Fourier(3)}, "Fourier(...); expected Described"),
        ({"encoding": Fourier(3)}, {"encoding": Fourier(4)}, "'encoding.gain' is (3,) in the file"),
        ({}, {"encoding": hl.CosSin(per_input=True)}, "per_input=True); expected CosSin(per_"),
        ({}, {"head": hl.LowRank(2)}, "LowRank(rank=2); expected Dense()"),
        ({}, {"activation": "relu"}, "relu(inplace=False); expected leaky_relu("),
        ({}, {"inputs": {"g": hl.Uniform(0.0, 2.0)}}, "high=2.0"),
        ({}, {"inputs": {"gg": hl.Normal()}}, "not an input of the saved model"),
        ({"head": {"0.*": hl.Dense(), "*": OwnHead()}}, {"head": OwnHead()}, "expected {'0.*': D"),
    ],
)
def test_settings_that_do_not_agree_are_refused(
    made: dict[str, Any], given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    hl.save(hl.hypernetize(mlp(), SPACE, **made), tmp_path / "m")
    with pytest.raises(hl.FormatError) as error:
        hl.load(tmp_path / "m", mlp(), **given)
    assert words in str(error.value)


# --- refusals -------------------------------------------------------------------------------


def saved(path: Path, **settings: Any) -> hl.HyperModel:
    model = stirred(hl.hypernetize(mlp(), SPACE, **settings))
    hl.save(model, path)
    return model


def newer(tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    about.update(version=4, library="9.0.0")


def without_seed(tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    del tensors["hypernet.trunk.layers.0.weight"]


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "text": (lambda p: p.write_text("hello, world"), ["is not a safetensors file", "hl.save"]),
    "empty": (lambda p: p.write_bytes(b""), ["is not a safetensors file"]),
    "pickle": (lambda p: torch.save({}, p), ["zip archive", "weights_only=True"]),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-1]), ["cut short or damaged", "Copy it"]),
    "cut header": (lambda p: p.write_bytes(p.read_bytes()[:60]), ["cut short or damaged"]),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"x"), ["cut short or damaged"]),
    "other": (
        lambda p: safetensors.torch.save_file({"w": torch.ones(2)}, p),
        ["not written by hl.save", "holds 'w'", "load_state_dict"],
    ),
    "newer": (
        lambda p: rewrite(p, newer),
        ["version 4", "HyperLight 9.0.0", f"this is HyperLight {hl.__version__}", "Upgrade"],
    ),
    "unknown class": (
        lambda p: rewrite(p, lambda t, a: a["encoding"].update({"class": "CosSim"})),
        ["CosSim(per_input=False)", "does not know", "Did you mean 'CosSin'?"],
    ),
    "unknown argument": (
        lambda p: rewrite(p, lambda t, a: a["head"]["config"].update(depth=3)),
        ["Dense(depth=3), which cannot be made"],
    ),
    "no version": (
        lambda p: rewrite(p, lambda t, a: a.pop("version")),
        ["damaged: no version (KeyError('version'))"],
    ),
    "no hidden": (lambda p: rewrite(p, lambda t, a: a.pop("hidden")), ["damaged: 'hidden' is 'mi"]),
    "missing tensor": (
        lambda p: rewrite(p, without_seed),
        ["the file has no 'trunk.layers.0.weight'"],
    ),
    "gone": (lambda p: p.unlink(), ["There is no file", "the current folder is"]),
    "folder": (lambda p: (p.unlink(), p.mkdir()), ["is a folder", "model.safetensors"]),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES.keys())
def test_files_that_cannot_be_loaded_are_refused_in_words(
    damage: Callable[[Path], object], words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "m"
    saved(path)
    damage(path)
    primary = mlp()
    before = contents(primary)
    with pytest.raises((hl.FormatError, FileNotFoundError)) as error:
        hl.load(path, primary)
    for word in [*words, str(path)]:
        assert word in str(error.value)
    assert contents(primary) == before


OTHERS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "fewer layers": (
        lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh()),
        ["the given Sequential", "the primary has no '2.bias', '2.weight'", "(class Sequential)"],
    ),
    "more layers": (lambda: mlp().append(nn.Linear(2, 2)), ["the file has no '3.weight'"]),
    "wider": (
        lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)),
        ["'0.weight' is (5, 3) in the file, (6, 3) in the primary"],
    ),
    "double": (
        lambda: mlp().double(),
        ["'0.weight' is torch.float32 in the file, torch.float64 in the primary", "dtype"],
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 2)), ["lazy"]),
    "meta": (lambda: mlp().to("meta"), ["meta device", "to_empty"]),
}


@pytest.mark.parametrize(("make", "words"), OTHERS.values(), ids=OTHERS.keys())
def test_a_primary_of_another_architecture_is_refused(
    make: Callable[[], nn.Module], words: list[str], tmp_path: Path
) -> None:
    saved(tmp_path / "m")
    with pytest.raises(hl.FormatError) as error:
        hl.load(tmp_path / "m", make())
    for word in words:
        assert word in str(error.value)


def test_a_primary_with_hooks_that_fail_is_as_it_was(tmp_path: Path) -> None:
    class Stubborn(nn.Linear):
        def _load_from_state_dict(self, *args: Any) -> None:
            super()._load_from_state_dict(*args)
            raise RuntimeError("no")

    saved(tmp_path / "m")
    primary = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), Stubborn(5, 2))
    before = contents(primary)
    with (
        pytest.raises(RuntimeError, match="no"),
        pytest.warns(UserWarning, match="'2' is a Linear in the file, a Stubborn here"),
    ):
        hl.load(tmp_path / "m", primary)
    assert contents(primary) == before


def test_a_clash_with_the_primarys_forward_is_found_before_anything_is_loaded(
    tmp_path: Path,
) -> None:
    class Other(nn.Sequential):
        def forward(self, x: Tensor, g: float = 0.0) -> Tensor:
            return super().forward(x)

    saved(tmp_path / "m")
    primary = Other(*mlp())
    before = contents(primary)
    with (
        pytest.raises(hl.FormatError, match=r"m: Hypernetwork input 'g'.* Rename the input"),
        pytest.warns(UserWarning, match="a Other here"),
    ):
        hl.load(tmp_path / "m", primary)
    assert contents(primary) == before


def test_with_and_without_a_primary_are_told_apart(tmp_path: Path) -> None:
    model = saved(tmp_path / "m")
    with pytest.raises(hl.FormatError) as error:
        hl.load(tmp_path / "m")
    for word in (str(tmp_path / "m"), "Sequential. Pass one: hl.load(path, Sequential(...))"):
        assert word in str(error.value)
    hl.save(model.hypernet, tmp_path / "h")
    with pytest.raises(hl.FormatError, match="hypernetwork without a primary.*HyperModel"):
        hl.load(tmp_path / "h", mlp())
    joined = hl.HyperModel(model.primary, hl.load(tmp_path / "h"))
    x = vectors()
    assert torch.equal(joined(x, g=0.2), model(x, g=0.2))


def test_what_cannot_be_saved_is_refused_in_words(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"any": "thing"}

        def set_extra_state(self, state: object) -> None:
            pass

    class Wider(hl.HyperModel):
        def __init__(self, model: hl.HyperModel) -> None:
            super().__init__(model.primary, model.hypernet)
            self.own = nn.Parameter(torch.ones(1))

    mixed = hl.hypernetize(mlp(), SPACE)
    mixed.hypernet.head.double()
    model = hl.hypernetize(mlp(), SPACE)
    (tmp_path / "folder").mkdir()
    for thing, path, words in (
        (mlp(), "m", ["of type Sequential; expected a HyperModel", "torch.compile"]),
        (hl.hypernetize(Extra(2, 2), SPACE), "m", ["_extra_state' is of type dict"]),
        (Wider(model), "m", ["'own' of its own"]),
        (hl.hypernetize(mlp().to("meta"), SPACE), "m", ["'primary.0.weight' is on the meta"]),
        (mixed, "m", ["'head.weight' have another", "hypernet.to(torch.float32)"]),
        (model, "folder", ["is a folder", "folder/model.safetensors"]),
        (model, "none/m", ["none does not exist", "mkdir"]),
    ):
        with pytest.raises(hl.FormatError) as error:
            hl.save(thing, tmp_path / path)
        for word in words:
            assert word in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    hl.save(hl.HyperNet(SPACE, {"w": (2,)}, hidden=(2,)), tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    for size in (*range(0, len(whole), 37), len(whole) - 1):
        (tmp_path / "m").write_bytes(whole[:size])
        with pytest.raises(hl.FormatError):
            hl.load(tmp_path / "m")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_metadata_that_was_tampered_with_fails_in_words_or_loads(data: st.DataObject) -> None:
    junk = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.text(max_size=3), st.just([]),
        st.just({}), st.just([1]), st.just({"class": "Dense"}), st.floats(allow_nan=False),
    )  # fmt: skip

    def change(tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        place: Any = about
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if (
                not isinstance(place[key], (dict, list))
                or not place[key]
                or data.draw(st.booleans())
            ):
                break
            place = place[key]
        place[key] = data.draw(junk)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m")
        head = {"0.*": hl.LowRank(2), "*": hl.Dense()}
        hl.save(hl.hypernetize(mlp(), SPACE, hidden=(2,), head=head), path)
        rewrite(path, change)
        primary = mlp()
        before = contents(primary)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another structure
            try:
                hl.load(path, primary)
            except hl.FormatError as error:
                refusal = str(error)
            else:
                return
        assert str(path) in refusal
        assert contents(primary) == before


def test_metadata_that_is_not_json_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]", "null"):
        safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "m", {"hyperlight": text})
        with pytest.raises(hl.FormatError, match="m: the metadata is damaged"):
            hl.load(tmp_path / "m")

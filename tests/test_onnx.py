"""A family in one ONNX file: it gives what the model gives, and says what its inputs take."""

from __future__ import annotations

import json
import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import hyperlight as hl
from hyperlight import onnx as exporting
from tests.models import Gives, convolutional, mlp

ROOT = Path(__file__).parents[1]
SPACE = {"scale": hl.Uniform(0.0, 0.5)}


@dataclass
class Exported:
    """A model, its file, and what the call returned."""

    model: hl.HyperModel
    path: Path
    about: dict[str, Any]

    def __post_init__(self) -> None:
        self.session = onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        self.names = [entry.name for entry in self.session.get_inputs()]

    def __call__(self, **given: Any) -> list[Tensor]:
        fed = {name: torch.as_tensor(value).numpy() for name, value in given.items()}
        return [torch.as_tensor(found) for found in self.session.run(None, fed)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


def untouched(folder: Path) -> bool:
    """Whether nothing was left beside the file that was there before."""
    return [f.name for f in folder.iterdir()] == ["f.onnx"] and (
        (folder / "f.onnx").read_text() == "earlier"
    )


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A file that is there already."""
    path = tmp_path / "f.onnx"
    path.write_text("earlier")
    return path


# --- one value for the batch ----------------------------------------------------------------


@pytest.fixture(scope="module")
def images(folder: Path) -> Exported:
    torch.manual_seed(0)
    inputs = {"scale": hl.LogUniform(1e-3, 1.0), "site": hl.Categorical(3)}
    model = hl.hypernetize(convolutional(), inputs, init="fan_out")
    model.train()
    model.primary[1].eval()
    path = folder / "images.onnx"
    return Exported(model, path, hl.export_onnx(model, path, torch.rand(2, 1, 4, 4)))


def test_a_conv_net_takes_every_value_and_every_batch(images: Exported) -> None:
    assert images.names == ["input", "scale", "site"]
    model = images.model.eval()
    for batch, scale, site in ((1, 1e-3, 0), (2, 1.0, 2), (7, 0.02, 1)):
        x, scale = torch.rand(batch, 1, 4, 4), torch.tensor(scale)
        (found,) = images(input=x, scale=scale, site=site)
        close(found, model(x, scale=scale, site=site))
    (one,), (other,) = (images(input=x, scale=torch.tensor(s), site=0) for s in (1e-3, 1.0))
    assert not torch.allclose(one, other, atol=1e-3)  # the input does something


def test_a_value_outside_is_replaced_by_the_nearest(images: Exported) -> None:
    x, zero = torch.rand(2, 1, 4, 4), torch.tensor(0)
    for given, nearest in ((7.0, 1.0), (-2.0, 1e-3)):
        (found,) = images(input=x, scale=torch.tensor(given), site=zero)
        (expected,) = images(input=x, scale=torch.tensor(nearest), site=zero)
        assert torch.equal(found, expected)
    (found,) = images(input=x, scale=torch.tensor(0.1), site=3)
    assert found.isnan().all()


def test_the_file_says_what_its_inputs_take(images: Exported) -> None:
    metadata = images.session.get_modelmeta().custom_metadata_map
    assert metadata.keys() == {"hyperlight"}
    assert json.loads(metadata["hyperlight"]) == images.about
    assert images.about == {
        "format": "hyperlight",
        "version": 1,
        "library": hl.__version__,
        "primary": "Sequential",
        "per_sample": False,
        "inputs": {
            "scale": {
                "class": "LogUniform",
                "low": 1e-3,
                "high": 1.0,
                "middle": pytest.approx(10**-1.5),
                "logarithmic": True,
                "discrete": False,
                "name": "scale",
                "dtype": "float32",
                "shape": [],
            },
            "site": {
                "class": "Categorical",
                "low": 0,
                "high": 2,
                "middle": 1,
                "logarithmic": False,
                "discrete": True,
                "name": "site",
                "dtype": "int64",
                "shape": [],
            },
        },
        "arguments": [{"name": "input", "dtype": "float32", "shape": ["batch", 1, 4, 4]}],
        "outputs": ["output"],
    }
    (x, *_), (output,) = images.session.get_inputs(), images.session.get_outputs()
    assert (x.shape, output.name, output.shape) == (["batch", 1, 4, 4], "output", ["batch", 3])


def test_the_file_is_one_and_holds_nothing_of_this_machine(images: Exported, folder: Path) -> None:
    assert [path.name for path in folder.glob("images*")] == ["images.onnx"]
    content = images.path.read_bytes()
    for text in (str(ROOT), str(Path(torch.__file__).parent), "/hyperlight/", ".py"):
        assert text.encode() not in content


def test_the_model_is_as_it_was(tmp_path: Path) -> None:
    model = hl.hypernetize(convolutional(), SPACE)
    model.primary[1].eval()
    x = torch.rand(3, 1, 4, 4)
    model(x, scale=0.1)
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    last, random = model.last_run, torch.get_rng_state()
    hl.export_onnx(model, tmp_path / "f.onnx", x)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.last_run is last
    assert torch.equal(torch.get_rng_state(), random)
    model(x, scale=0.1).sum().backward()


def test_nothing_is_said_of_torchvision(tmp_path: Path) -> None:
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        hl.export_onnx(hl.hypernetize(mlp(), SPACE), tmp_path / "f.onnx", torch.rand(2, 3))
        assert said == []
        logger.warning("torchvision is not installed")  # by others, later
        assert said == ["torchvision is not installed"]
    finally:
        logger.removeHandler(handler)


# --- several arguments and outputs, any head ------------------------------------------------


class Reader(nn.Module):
    """A block of a transformer, with a mask, a flag and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(
        self, tokens: Tensor, side: tuple[Tensor, Tensor], mask: Tensor, *, double: bool = False
    ) -> dict[str, Any]:
        x = tokens + side[0] + side[1]
        h = self.block(x, src_key_padding_mask=mask)
        logits = self.out(h.mean(1)) * (2 if double else 1)
        # Names of an input, and of operations within the graph.
        return {"linear": logits, "mean": h.mean(), "mask": mask, "n": 3, "parts": (h, None)}


@pytest.fixture(scope="module")
def reader(folder: Path) -> Exported:
    torch.manual_seed(0)
    model = hl.hypernetize(Reader(), {"mul": hl.Uniform(0.0, 2.0)}, head=hl.LowRank(2))
    for parameter in model.hypernet.head.parameters():
        nn.init.normal_(parameter, std=0.3)
    path = folder / "reader.onnx"
    about = hl.export_onnx(
        model,
        path,
        torch.rand(3, 5, 8),
        (torch.rand(3, 5, 8), torch.rand(1, 5, 8)),
        mask=torch.zeros(3, 5, dtype=torch.bool),
        double=True,
        opset=18,
        dynamic={
            "tokens": {1: "length"},
            "side_0": {1: "length"},
            "side_1": {-2: "length"},
            "mask": {1: "length"},
        },
    )
    return Exported(model.eval(), path, about)


def test_a_transformer_takes_several_arguments_of_any_length(reader: Exported) -> None:
    assert reader.names == ["tokens", "side_0", "side_1", "mask", "mul"]
    names = ["linear", "mean", "mask_out", "parts_0"]
    assert [entry.name for entry in reader.session.get_outputs()] == names
    assert reader.about["outputs"] == names
    assert [entry["shape"] for entry in reader.about["arguments"]] == [
        ["batch", "length", 8],
        ["batch", "length", 8],
        [1, "length", 8],
        ["batch", "length"],
    ]
    for batch, length, mul in ((1, 5, 0.0), (2, 7, 2.0)):
        tokens, side = torch.rand(batch, length, 8), torch.rand(batch, length, 8)
        shared, mul = torch.rand(1, length, 8), torch.tensor(mul)
        mask = torch.rand(batch, length) > 0.8
        mask[:, 0] = False
        expected = reader.model(tokens, (side, shared), mask=mask, double=True, mul=mul)
        found = reader(tokens=tokens, side_0=side, side_1=shared, mask=mask, mul=mul)
        close(found[0], expected["linear"])
        close(found[1], expected["mean"])
        assert torch.equal(found[2], mask)
        close(found[3], expected["parts"][0])


def test_the_opset_is_the_one_that_was_asked_for(reader: Exported) -> None:
    (default,) = onnx.load(reader.path).opset_import
    assert default.version == 18


# --- inputs of all kinds --------------------------------------------------------------------


@pytest.fixture(scope="module")
def knobs(folder: Path) -> Exported:
    torch.manual_seed(0)
    examples = torch.rand(9, 4)
    model = hl.hypernetize(
        mlp(),
        {
            "noise": hl.Normal(2, loc=1.0, scale=3.0),
            "ray": hl.Simplex(3),
            "task": hl.Categorical(4),
            "image": hl.Encoded(nn.Linear(4, 5), features=5),
        },
        calibrate_on={"image": examples},
    )
    path = folder / "knobs.onnx"
    blend = torch.tensor([0.5, 0.5, 0.0, 0.0])
    x = torch.rand(2, 3)
    about = hl.export_onnx(model, path, x, task=blend, gain=1.5)
    return Exported(model, path, about)


def test_inputs_of_every_kind(knobs: Exported) -> None:
    assert knobs.names == ["input", "noise", "ray", "task", "image", "gain"]
    gamma = knobs.model.sample(generator=torch.Generator().manual_seed(1))
    gamma["task"] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    x = torch.rand(4, 3)
    for gain in (0.0, -2.5):
        gamma["gain"] = torch.tensor(gain)
        (found,) = knobs(input=x, **gamma)
        close(found, knobs.model(x, **gamma))


def test_inputs_of_every_kind_are_described(knobs: Exported) -> None:
    about = knobs.about["inputs"]
    assert {name: entry["class"] for name, entry in about.items()} == {
        "noise": "Normal",
        "ray": "Simplex",
        "task": "Simplex",  # a blend of categories
        "image": "Encoded",
        "gain": "gain",
    }
    noise, ray = about["noise"], about["ray"]
    assert (noise["low"], noise["high"], noise["loc"], noise["scale"]) == (None, None, 1.0, 3.0)
    assert (noise["shape"], noise["middle"], noise["dtype"]) == ([2], [1.0, 1.0], "float32")
    assert (ray["low"], ray["high"], ray["middle"]) == (0.0, 1.0, pytest.approx([1 / 3] * 3))
    assert about["gain"]["middle"] == 1.0
    assert about["image"] == {
        "class": "Encoded",
        "name": "image",
        "dtype": "float32",
        "shape": [4],
    }


# --- one value per sample -------------------------------------------------------------------


@pytest.fixture(scope="module")
def each(folder: Path) -> Exported:
    torch.manual_seed(0)
    inputs = {"scale": hl.Uniform(0.0, 2.0), "site": hl.Categorical(3)}
    model = hl.hypernetize(convolutional(), inputs, init="fan_out").eval()
    path = folder / "each.onnx"
    about = hl.export_onnx(model, path, torch.rand(1, 1, 4, 4), per_sample=True)
    return Exported(model, path, about)


def test_every_sample_has_a_value_of_its_own(each: Exported) -> None:
    shapes = {entry.name: entry.shape for entry in each.session.get_inputs()}
    assert shapes == {"input": ["batch", 1, 4, 4], "scale": ["batch"], "site": ["batch"]}
    assert each.about["per_sample"]
    assert each.about["inputs"]["scale"]["shape"] == ["batch"]
    for batch in (1, 2, 5):
        gamma = each.model.sample(batch)
        x = torch.rand(batch, 1, 4, 4)
        (found,) = each(input=x, **gamma)
        close(found, each.model(x, **gamma))


def test_arguments_may_be_shared_or_hold_samples_elsewhere(tmp_path: Path) -> None:
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return self.linear(x) * weight

    model = hl.hypernetize(Mixes(), SPACE)
    x, weight = torch.rand(2, 2, 3), torch.rand(2, 1, 1)  # the sequence is as long as the batch
    hl.export_onnx(
        model, path := tmp_path / "f.onnx", hl.PerSample(x, 1), hl.Shared(weight), per_sample=True
    )
    session = onnxruntime.InferenceSession(path)
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    assert shapes == {"x": [2, "batch", 3], "weight": [2, 1, 1], "scale": ["batch"]}


# --- what is refused ------------------------------------------------------------------------


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else x


class Draws(Decides):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.randn_like(x)


class Counts(Decides):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (3.0 if len(x) == 1 else 1.0)


class OfFour(Decides):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).reshape(2, 2, 3)


def test_a_network_that_decides_by_values_is_refused(earlier: Path) -> None:
    model = hl.hypernetize(Decides(), SPACE)
    with pytest.raises(hl.FormatError, match="Decides cannot be exported to ONNX. .*data") as error:
        hl.export_onnx(model, earlier, torch.rand(2, 3))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert untouched(earlier.parent)
    assert model.training


def test_a_file_that_differs_is_not_written(earlier: Path) -> None:
    model = hl.hypernetize(Draws(), SPACE)
    words = (
        r"The exported Draws does not give what the model gives for scale = 0, with 2 samples: "
        r"'output' differs by [\d.]+ of its largest value; expected at most 0.0001. No file was "
        r"written. A forward that draws random numbers"
    )
    with pytest.raises(hl.FormatError, match=words):
        hl.export_onnx(model, earlier, torch.rand(2, 3))
    assert untouched(earlier.parent)


def test_what_onnxruntime_cannot_run_is_refused(earlier: Path) -> None:
    model = hl.hypernetize(mlp().double(), SPACE)
    words = "The exported Sequential cannot be loaded. NotImpl.*LeakyRelu.*No file was written"
    with pytest.raises(hl.FormatError, match=f"{words}.*copy.deepcopy"):
        hl.export_onnx(model, earlier, torch.rand(2, 3).double())
    assert untouched(earlier.parent)


def test_a_batch_of_one_is_tried(earlier: Path) -> None:
    model = hl.hypernetize(Counts(), SPACE)
    words = (
        "Counts does not give what the model gives for scale = 0.25, with 1 sample: 'output' "
        "differs by 0.67 of its largest value; .* For batches of 2 alone, pass dynamic=False"
    )
    with pytest.raises(hl.FormatError, match=words):
        hl.export_onnx(model, earlier, torch.rand(2, 3))
    assert untouched(earlier.parent)


def test_a_fixed_size_can_be_exported_as_such(earlier: Path) -> None:
    model = hl.hypernetize(OfFour(), SPACE)
    words = (
        r"OfFour cannot be exported to ONNX. .*x.shape\[0\].* If a size has to be fixed, pass "
        r"dynamic=False, or None for one, as in dynamic={'x': {0: None}}"
    )
    with pytest.raises(hl.FormatError, match=words):
        hl.export_onnx(model, earlier, torch.rand(4, 3))
    assert untouched(earlier.parent)
    hl.export_onnx(model, earlier, torch.rand(4, 3), dynamic=False)
    assert onnxruntime.InferenceSession(earlier).get_inputs()[0].shape == [4, 3]


@pytest.fixture
def model() -> hl.HyperModel:
    return hl.hypernetize(mlp(), SPACE)


X = torch.ones(2, 3)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    missing: str, model: hl.HyperModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    words = f"'{missing}' is not installed. Install them: pip install onnx onnxscript onnxruntime"
    with pytest.raises(hl.MissingExtraError, match=words):
        hl.export_onnx(model, tmp_path / "f.onnx", X)


def test_more_than_a_file_can_hold_is_refused(
    model: hl.HyperModel, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_MOST_BYTES", 1000)
    with pytest.raises(hl.FormatError, match=r"take [\d.]+ GB; expected at most .*hl.LowRank"):
        hl.export_onnx(model, earlier, X)
    assert untouched(earlier.parent)


class Holder:
    tensor = X


@pytest.mark.parametrize(
    ("args", "settings", "error", "words"),
    [
        ((X,), {"tolerance": 0}, hl.ConfigurationError, "tolerance was 0; expected a positive"),
        ((X,), {"opset": 17.5}, hl.ConfigurationError, r"opset=17.5\): expected an integer"),
        (
            (X,),
            {"dynamic": {"inptu": {1: "n"}}},
            hl.ConfigurationError,
            "dynamic names 'inptu', which is no tensor.*'input', 'scale'. Did you mean 'input'",
        ),
        (
            (X,),
            {"dynamic": {"input": {2: "n"}}},
            hl.ConfigurationError,
            "axis 2 of 'input', which has 2 dimensions; expected one from -2 to 1",
        ),
        (
            (X,),
            {"scale": torch.zeros(2)},
            hl.InputError,
            r"'scale' was given with batch shape \(2,\); expected a single value",
        ),
        ((X,), {"scale": 0.7}, hl.InputError, r"'scale' was 0.7; expected values in \[0, 0.5\]"),
        ((), {}, hl.InputError, r"with the examples: missing a required argument: '.*'\. Pass an"),
        (
            (torch.tensor(1.0),),
            {"per_sample": True},
            hl.InputError,
            "no argument is a tensor with a batch dimension",
        ),
        ((X[:0],), {}, hl.InputError, "a batch without samples"),
        ((Holder(),), {}, hl.InputError, "holds an object of class Holder; expected tensors"),
    ],
)
def test_settings_that_do_not_fit(
    args: Any, settings: dict[str, Any], error: type[Exception], words: str, earlier: Path
) -> None:
    with pytest.raises(error, match=words):
        hl.export_onnx(hl.hypernetize(mlp(), SPACE), earlier, *args, **settings)
    assert untouched(earlier.parent)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Holder(), "Gives returns an object of class Holder; expected tensors, or tuples"),
        ([1, None], "Gives returns no tensor, and a graph has to return one"),
    ],
)
def test_outputs_that_do_not_fit(value: Any, words: str, earlier: Path) -> None:
    primary = Gives(value)
    primary.weight = nn.Parameter(torch.ones(2))
    model = hl.hypernetize(primary, SPACE)
    with pytest.raises(hl.FormatError, match=words):
        hl.export_onnx(model, earlier, X)
    assert untouched(earlier.parent)


def test_other_models_names_and_paths_are_refused(tmp_path: Path, model: hl.HyperModel) -> None:
    with pytest.raises(hl.ConfigurationError, match="was of type Sequential; expected a HyperMo"):
        hl.export_onnx(mlp(), tmp_path / "f.onnx", X)  # type: ignore[arg-type]
    clash = hl.hypernetize(mlp(), {"opset": hl.Uniform()})
    with pytest.raises(hl.ConfigurationError, match="'opset' has the name of an argument of expor"):
        hl.export_onnx(clash, tmp_path / "f.onnx", X)
    with pytest.raises(hl.FormatError, match="is a folder; expected a file, such as .*family.onnx"):
        hl.export_onnx(model, tmp_path, X)
    with pytest.raises(hl.FormatError, match="nowhere does not exist. Make it first"):
        hl.export_onnx(model, tmp_path / "nowhere" / "f.onnx", X)
    assert list(tmp_path.iterdir()) == []


def test_an_encoded_input_needs_a_value(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Nothing is known of the values"):
        model = hl.hypernetize(mlp(), {"image": hl.Encoded(nn.Linear(4, 5), features=5)})
    with pytest.raises(hl.InputError, match=r"Pass one: hl.export_onnx\(.*, x, image=...\)"):
        hl.export_onnx(model, tmp_path / "f.onnx", X)
    with pytest.raises(hl.InputError, match="Declare the shape of one: hl.Encoded"):
        hl.export_onnx(model, tmp_path / "f.onnx", X, image=torch.rand(1, 4))


@pytest.mark.parametrize(
    ("right", "found", "expected"),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([0.0, 1e-6], [0.0, 0.0], 1e-3),
        ([math.nan, 1.0], [math.nan, 1.0], 0.0),
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([math.inf, 1.0], [math.inf, 1.5], 0.5),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ([], [], 0.0),
    ],
)
def test_differences(right: list[float], found: list[float], expected: float) -> None:
    apart = exporting._difference(torch.tensor(right), torch.tensor(found))
    assert apart == pytest.approx(expected)

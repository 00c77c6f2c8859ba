"""``python -m tests.compare_hyperlight``: converted checkpoints against HyperLight 0.0.5 itself.

Installs the release into a temporary folder (``--package`` takes a wheel where there is no
network), runs it in a process of its own with the PyTorch of this one, and compares what both
predict and compute in float32 and float64, and the spread from which each tensor starts. The
examples of docs/migration.md that are written for 0.0.5 are run there too, the last one of now
reads what they wrote, and the public names are compared with the list below.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

import hyperlight as hl

# The public names of the release: of the package, and of its classes and their methods.
PUBLIC = [
    "hypernetize", "hypernetize_single",
    "find_modules_of_type", "find_modules_from_patterns", "find_parameters_from_patterns",
    "HyperNet", "HyperNetMixin", "FullyConnectedNet", "Shape",
    "from_existing", "set_independent_weights", "get_independent_weights",
    "init_independent_weights", "freeze_independent_weights", "unfreeze_independent_weights",
    "encode_inputs", "flat_input_size", "flat_output_size", "output_offsets", "flatten_inputs",
    "unflatten_output", "forward", "reset_parameters",
    "InputMode", "encode_input", "encoding_multiplier",
    "initialize_weight", "initialize_bias", "initialize_layer",
    "HyperModule", "register_external", "get_external", "set_external", "set_externals",
    "named_externals", "externals", "external_shapes", "reset_externals", "apply_externals",
    "using_externals", "convert_external", "convert_externals",
    "ExternalParameter", "shape", "dtype", "data", "reset",
    "HyperLinear", "HyperConv1d", "HyperConv2d", "HyperConv3d", "extra_repr",
]  # fmt: skip

CASES = [
    {"inputs": {"h": [1]}, "hidden": [16, 32]},
    {"inputs": {"z": [3], "a": [2, 2], "m": [1]}, "hidden": [8]},
    {"inputs": {"h": [4]}, "hidden": []},
    {"inputs": {"h": [2]}, "hidden": [5, 6, 7], "encoding": "z|1-z", "nonlinearity": "Tanh"},
    {"inputs": {"h": [2]}, "hidden": [], "encoding": "z|1-z"},
    {"inputs": {"h": [2], "b": [1]}, "hidden": [9], "encoding": None, "nonlinearity": "GELU"},
    {"inputs": {"h": [2]}, "hidden": [9], "nonlinearity": "SiLU", "dropout": 0.5},
    {"inputs": {"h": [2]}, "hidden": [9], "nonlinearity": "ReLU", "bias": False},
]

# Runs with the release. For every case and dtype: the whole state dict, an input, an output.
RELEASED = """
import json, sys
import hyperlight, torch
from safetensors.torch import save_file
from torch import nn
from tests.compare_hyperlight import primary
assert hyperlight.__version__ == "0.0.5", hyperlight.__file__
cases, folder = json.loads(sys.argv[1]), sys.argv[2]
for number, case in enumerate(cases):
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(number)
        model = nn.Module()
        net = primary().to(dtype)
        net(torch.randn(8, 2, 6, 6, dtype=dtype))  # moves the running statistics
        kinds = hyperlight.find_modules_of_type(net, [nn.Conv2d, nn.Linear])
        model.net = hyperlight.hypernetize(net, modules=kinds).eval()
        model.hyper = hyperlight.HyperNet(
            {name: tuple(shape) for name, shape in case["inputs"].items()},
            model.net.external_shapes(), case["hidden"], case.get("encoding", "cos|sin"),
            init_independent_weights=case.get("bias", True),
            fc_kws={"nonlinearity": case.get("nonlinearity", "LeakyReLU"),
                    "dropout_prob": case.get("dropout", 0), "out_bias": case.get("bias", True)},
        ).to(dtype).eval()
        rows, offsets = model.hyper.backbone.output.weight.detach(), model.hyper.output_offsets()
        start = {n: rows[o : o + count].norm() for n, (o, count) in offsets.items()}
        with torch.no_grad():
            for parameter in model.hyper.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            gamma = {n: torch.rand(1, *shape, dtype=dtype) for n, shape in case["inputs"].items()}
            theta, x = model.hyper(**gamma), torch.randn(3, 2, 6, 6, dtype=dtype)
            with model.net.using_externals(theta):
                y = model.net(x)
        name = f"{folder}/{number}-{str(dtype)[6:]}"
        save_file({n: t.contiguous() for n, t in model.state_dict().items()}, name + ".state")
        found = {"x": x, "y": y, **{"start." + n: t for n, t in start.items()},
                 **{"gamma." + n: t[0] for n, t in gamma.items()},
                 **{"theta." + n: t.contiguous() for n, t in theta.items()}}
        save_file({n: t.clone() for n, t in found.items()}, name + ".found")
for code in json.loads(sys.argv[3]):
    exec(code, {})
names = set()
for module in [m for n, m in sys.modules.items() if n.partition(".")[0] == "hyperlight"]:
    for name, thing in vars(module).items():
        home = getattr(thing, "__module__", "") or ""
        if not name.startswith("_") and (home.startswith("hyperlight") or name in
                                         ("Shape", "InputMode", "encoding_multiplier")):
            names.add(name)
            if isinstance(thing, type):
                names |= {n for n, a in vars(thing).items() if not n.startswith("_") and
                          (callable(a) or isinstance(a, (property, classmethod)))}
json.dump(sorted(names), open(folder + "/names.json", "w"))
"""


def primary() -> nn.Sequential:
    """With layers that are predicted and one, with buffers, that is not."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )


def compare(folder: Path) -> int:
    """The number of comparisons that fail."""
    failures = 0
    for number, case in enumerate(CASES):
        for dtype in (torch.float32, torch.float64):
            name = f"{number}-{str(dtype).removeprefix('torch.')}"
            state = safetensors.torch.load_file(folder / f"{name}.state")
            found = safetensors.torch.load_file(folder / f"{name}.found")
            model = hl.io.from_hyperlight(
                state,
                primary().to(dtype).eval(),
                {n: hl.Uniform(0.0, 1.0, tuple(shape)) for n, shape in case["inputs"].items()},
                encoding=case.get("encoding", "cos|sin"),
                nonlinearity=case.get("nonlinearity", "LeakyReLU"),
            )
            gamma = {n: found[f"gamma.{n}"] for n in case["inputs"]}
            with torch.no_grad():
                ours = {f"theta.{n}": t for n, t in model.predict(**gamma).items()}
                ours["y"] = model(found["x"], **gamma)
            assert set(ours) == {n for n in found if n == "y" or n.startswith("theta.")}
            # With a tanh the release has the gain 5/3 of that; fan_out always has sqrt(2).
            if case.get("nonlinearity") != "Tanh":
                failures += compare_start(model, found)
            error = max(
                float((t - found[n]).abs().max() / found[n].abs().max()) for n, t in ours.items()
            )
            limit = 1e-5 if dtype == torch.float32 else 1e-13
            failures += not error < limit
            verdict = "equal" if error < limit else "DIFFERENT"
            print(f"{name:10} {verdict}: relative error {error:.1e} (at most {limit:.0e})  {case}")
    return failures


def compare_start(model: hl.HyperModel, found: dict[str, torch.Tensor]) -> int:
    """The number of tensors whose part of the head starts with another norm than in the release.

    The norm of n normal draws has a relative standard error of 1 / sqrt(2 n); bound: 5 of both.
    """
    net, failures = model.hypernet, 0
    net.reset_parameters("fan_out", torch.Generator().manual_seed(0))
    sizes = [shape.numel() for shape in net.shapes.values()]
    for name, rows in zip(net.shapes, net.head.weight.detach().split(sizes), strict=True):
        ours, theirs = float(rows.norm()), float(found[f"start.{name}"])
        if not abs(ours - theirs) <= 5 / rows.numel() ** 0.5 * theirs:
            failures += 1
            print(f"{name} starts with norm {ours:.3g}; in the release {theirs:.3g}: DIFFERENT")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", default="hyperlight==0.0.5", help="what pip installs")
    package = parser.parse_args().package
    page = (Path(__file__).parents[1] / "docs" / "migration.md").read_text()
    before = re.findall(r"```python\n(# 0\.0\.5\n.*?)```", page, re.DOTALL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install = ["install", "--quiet", "--no-deps", "--target", str(folder / "release"), package]
        subprocess.run([sys.executable, "-m", "pip", *install], check=True)
        # The release shadows this project there; the tests only give it the primary's definition.
        (folder / "release" / "tests").mkdir()
        source = Path(__file__).read_text().replace("import hyperlight as hl\n", "")
        (folder / "release" / "tests" / "compare_hyperlight.py").write_text(source)
        (folder / "release" / "tests" / "__init__.py").touch()
        environment = {**os.environ, "PYTHONPATH": str(folder / "release")}
        arguments = [json.dumps(CASES), str(folder), json.dumps(before)]
        command = [sys.executable, "-c", RELEASED, *arguments]
        subprocess.run(command, check=True, env=environment, cwd=folder)
        failures = compare(folder)
        names = set(json.loads((folder / "names.json").read_text()))
        last = re.findall(r"```python\n(# now\n.*?)```", page, re.DOTALL)[-1]
        os.chdir(folder)  # where the last example for 0.0.5 has written its checkpoint
        exec(last, {})
        os.chdir(Path(__file__).parent)
    different = names.symmetric_difference(PUBLIC)
    print(f"{len(before)} examples for 0.0.5 ran; public names that differ: {sorted(different)}")
    return int(bool(failures or different))


if __name__ == "__main__":
    sys.exit(main())

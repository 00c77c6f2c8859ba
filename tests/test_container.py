"""Checksums and the border of ``hl.load``: nothing damaged passes, no foreign error is raised."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.io import container
from hyperlight.io.kinds import read_json
from tests.models import mlp
from tests.reference.files import rewrite
from tests.test_io import SPACE, contents, saved

FLIPS = 6_000


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


# --- one bit ------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_in_a_file_is_refused(tmp_path: Path) -> None:
    path, primary = tmp_path / "m", mlp()
    saved(path)
    whole, before = path.read_bytes(), contents(primary)
    header = 8 * (8 + int.from_bytes(whole[:8], "little"))
    draw = random.Random(0)
    bits = [
        *draw.sample(range(header), FLIPS // 2),
        *draw.sample(range(header, 8 * len(whole)), FLIPS // 2),
    ]
    for bit in bits:
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(hl.FormatError) as error:
            hl.load(path, primary)
        assert str(path) in str(error.value)
        assert "Copy it again" in str(error.value) or "safetensors" in str(error.value), bit
    assert contents(primary) == before
    path.write_bytes(whole)
    hl.load(path, primary)


def test_every_bit_of_a_sealed_text_counts() -> None:
    text = json.dumps({"sha256": container.BLANK, "step": 3, "note": 'a "sha256": "b"'}, indent=1)
    sealed = container.seal(text.encode())
    assert container.check_seal(sealed) is True
    for bit in range(8 * len(sealed)):
        assert container.check_seal(flipped(sealed, bit)) is not True, bit


def test_the_checksum_is_found_by_any_reader(tmp_path: Path) -> None:
    container.write(tmp_path / "m", {"w": torch.arange(3.0)}, {"about": "x"})
    with safetensors.safe_open(tmp_path / "m", "pt") as file:
        metadata = file.metadata()
        assert torch.equal(file.get_tensor("w"), torch.arange(3.0))
    assert metadata["checksum"] == "sha256"
    found = container.read(tmp_path / "m")
    assert (found.sealed, found.metadata) == (True, {"about": "x"})


def test_every_bit_of_a_small_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "m"
    container.write(path, {"w": torch.arange(3.0)}, {"about": "x"})
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(hl.FormatError):
            container.read(path)


def test_a_checksum_that_was_taken_out_is_missed(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    rewrite(tmp_path / "m", lambda tensors, about: None, sealed=False)
    with pytest.raises(hl.FormatError, match="version 3 of the format and no checksum"):
        hl.load(tmp_path / "m", mlp())


# --- files of version 1, other networks ------------------------------------------------------


def first_version(tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    about["version"] = 1
    del about["structure"]


def test_a_file_of_version_1_loads_with_a_word(tmp_path: Path) -> None:
    model = saved(tmp_path / "m")
    rewrite(tmp_path / "m", first_version, sealed=False)
    with pytest.warns(UserWarning, match=r"m: the file has no checksum.* Save it again"):
        again = hl.load(tmp_path / "m", mlp())
    assert contents(again) == contents(model)
    with pytest.raises(hl.FormatError, match=r"no checksum.*strict=False"):
        hl.load(tmp_path / "m", mlp(), strict=True)


class Other(nn.Sequential):
    pass


class Functional(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor], heads: int = 2) -> None:
        super().__init__()
        self.act, self.heads = act, heads
        self.conv = nn.Conv1d(2, 2, 3, padding="same", padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


def zero_padded() -> nn.Module:
    network = Functional(torch.relu)
    network.conv = nn.Conv1d(2, 2, 3, padding="same")
    return network


DIFFERENT: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "class": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()),
        lambda: Other(nn.Linear(3, 2), nn.ReLU()),
        "the primary itself is a Sequential in the file, a Other here",
    ),
    "activation": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh()),
        "'1' is a ReLU in the file, a Tanh here",
    ),
    "slope": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU()),
        lambda: nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU(0.2)),
        "'1' has negative_slope=0.01 in the file, 0.2 here",
    ),
    "padding": (
        lambda: Functional(torch.relu),
        zero_padded,
        "'conv' has padding_mode='reflect' in the file, 'zeros' here",
    ),
    "function": (
        lambda: Functional(nn.functional.relu),
        lambda: Functional(nn.functional.gelu),
        "act='torch.nn.functional.relu' in the file",
    ),
    "heads": (
        lambda: Functional(torch.relu, 2),
        lambda: Functional(torch.relu, 4),
        "heads=2 in the file, 4 here",
    ),
    "module": (
        lambda: nn.Sequential(nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh()),
        "the file has no module '1'",
    ),
}


@pytest.mark.parametrize(("make", "other", "words"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_a_primary_of_the_same_shapes_and_another_structure_is_doubted(
    make: Callable[[], nn.Module], other: Callable[[], nn.Module], words: str, tmp_path: Path
) -> None:
    hl.save(hl.hypernetize(make(), SPACE), tmp_path / "m")
    hl.load(tmp_path / "m", make(), strict=True)
    with pytest.warns(UserWarning, match="differs from the one that was saved") as record:
        hl.load(tmp_path / "m", other())
    assert words in str(record[0].message)
    assert record[0].filename == __file__
    primary = other()
    before = contents(primary)
    with pytest.raises(hl.FormatError, match="Build it as it was.*strict=False"):
        hl.load(tmp_path / "m", primary, strict=True)
    assert contents(primary) == before


def test_modes_of_training_are_no_structure(tmp_path: Path) -> None:
    network = Functional(torch.relu).eval()
    network.gradient_checkpointing = True
    hl.save(hl.hypernetize(network, SPACE), tmp_path / "m")
    other = Functional(torch.relu)
    other.gradient_checkpointing = False
    hl.load(tmp_path / "m", other, strict=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    model = hl.hypernetize(mlp(), SPACE)
    with torch.no_grad():
        model.primary[2].bias[1] = value
        model.hypernet.trunk.layers[0].weight[0, 0] = value
    found = r"NaN or infinite in 'primary.2.bias', 'hypernet.trunk.layers.0.weight'"
    with pytest.warns(UserWarning, match=f"of the saved model are {found}"):
        hl.save(model, tmp_path / "m")
    with pytest.warns(UserWarning, match=f"m: the weights are {found}"):
        hl.load(tmp_path / "m", mlp())


# --- memory, and what no one would write ----------------------------------------------------


def larger(**changes: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    def change(tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        about.update(changes)

    return change


def category(n: int) -> dict[str, Any]:
    config = {"n": n, "shape": [], "features": 3}
    return {"g": {"class": "Categorical", "config": config}}


MIXED = {"class": "Mixed", "config": {}, "heads": []}
CRAFTED: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], None]] = {
    "categories": larger(inputs=category(40_000_000)),
    "more categories": larger(inputs=category(2**62)),
    "widths": larger(hidden=[16, 40_000_000]),
    "layers": larger(hidden=[16] * 20_000),
    "shapes": larger(shapes={"0.weight": [2**31, 2**31]}),
    "overflow": larger(shapes={"0.weight": [2**62, 2**62]}),
    "chunks": larger(head={"class": "Chunked", "config": {"size": 2**61}}),
    "vector": larger(inputs={"g": {"class": "Vector", "config": {"size": 2**40}}}),
    "int64": larger(dtype="int64"),
    "quint8": larger(dtype="quint8"),
    "float8": larger(dtype="float8_e4m3fn"),
    "no dtype": larger(dtype="nn"),
    "slope": larger(activation={"class": "leaky_relu", "config": {"negative_slope": "x"}}),
    "approximation": larger(activation={"class": "gelu", "config": {"approximate": "x"}}),
    "heads in heads": larger(head={**MIXED, "heads": [["*", MIXED]]}),
    "alias": larger(aliases={"primary.0.weight": "none"}),
    "raw": larger(raw={"primary.0.weight": ["float64", [7]]}),
    "version 0": larger(version=0),
    "version true": larger(version=True),
    "format": larger(format="other"),
    "structure": larger(structure={"": 3}),
}


@pytest.mark.parametrize("change", CRAFTED.values(), ids=CRAFTED.keys())
def test_crafted_descriptions_are_refused_without_memory(
    change: Callable[[dict[str, Tensor], dict[str, Any]], None], tmp_path: Path
) -> None:
    path, primary = tmp_path / "m", mlp()
    saved(path)
    hl.load(path, primary)  # what is imported on first use is there
    rewrite(path, change)
    before, random_state = contents(primary), torch.get_rng_state()
    with pytest.raises(hl.FormatError, match=re.escape(str(path))), peak() as taken:
        hl.load(path, primary)
    assert taken[0] < 50 * 2**20
    assert contents(primary) == before
    assert torch.equal(torch.get_rng_state(), random_state)


@contextlib.contextmanager
def peak() -> Iterator[list[int]]:
    """How many bytes of memory the block takes at its peak, on Linux; 0 elsewhere."""
    taken, reset = [0], Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak starts again from now
        before = memory()
    try:
        yield taken
    finally:
        if reset.exists():
            taken[0] = memory() - before


def memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_a_file_is_read_without_the_compiler_of_torch(tmp_path: Path) -> None:
    hl.save(
        hl.HyperNet({"c": hl.Categorical(3), "g": hl.Uniform(0.0, 1.0)}, {"w": (2,)}),
        tmp_path / "m",
    )
    code = (
        "import sys, hyperlight as hl; before = len(sys.modules); hl.load(sys.argv[1]); "
        "sys.exit(len(sys.modules) - before > 50)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], check=True)


def test_json_that_is_not_json_to_everyone_is_refused() -> None:
    for text, words in (
        ("[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("{", "Expecting"),
        (b"\xff", "decode"),
    ):
        with pytest.raises(ValueError, match=words):
            read_json(text)


@pytest.mark.parametrize("depth", [500, 100_000])
def test_deep_metadata_is_refused(depth: int, tmp_path: Path) -> None:
    deep = "[" * depth + "]" * depth
    text = json.dumps({"version": 2}).replace("2", f'2, "inputs": {deep}')
    container.write(tmp_path / "m", {}, {"hyperlight": text})
    with pytest.raises(hl.FormatError, match="m: the metadata is damaged"):
        hl.load(tmp_path / "m", mlp())


# --- writers that are killed ------------------------------------------------------------------


def write_slowly(path: Path, begun: Any) -> None:
    real = container.feed

    def slow(tensor: Tensor, *sinks: Any) -> None:
        real(tensor, *sinks)
        begun.set()
        time.sleep(60)

    container.feed = slow
    container.write(path, {"w": torch.ones(1000)}, {})


def test_the_file_of_a_killed_writer_is_swept_and_that_of_a_living_one_is_not(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("spawn")
    path, begun = tmp_path / "m", context.Event()
    writer = context.Process(target=write_slowly, args=(path, begun))
    writer.start()
    assert begun.wait(60)
    container.write(path, {"w": torch.zeros(2)}, {})  # beside the living one
    assert len(list(tmp_path.iterdir())) == 2
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert len(list(tmp_path.iterdir())) == 2
    container.write(path, {"w": torch.ones(2)}, {})
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(container.read(path).tensors["w"], torch.ones(2))

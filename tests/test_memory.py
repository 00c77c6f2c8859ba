"""Memory: sizes are exact before anything is allocated, and what cannot fit is refused."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hyperlight as hl
from hyperlight import memory
from hyperlight.init import Initialization
from tests.models import PRIMARIES, convolutional, mlp

SPACE = {"g": hl.Uniform(0.0, 1.0)}
GIB = 2**30


class Scaled(hl.Head):
    """A user's head: one learned direction per tensor, moved by the mean feature."""

    def make(self, dtype: torch.dtype, device: torch.device) -> None:
        total = sum(shape.numel() for shape in self.shapes.values())
        self.direction = nn.Parameter(torch.empty(total, dtype=dtype, device=device))

    def reset_parameters(
        self, init: Initialization, generator: torch.Generator | None = None
    ) -> None:
        nn.init.normal_(self.direction, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=-1, keepdim=True) * self.direction


HEADS: dict[str, Any] = {
    "dense": hl.Dense(),
    "low rank": hl.LowRank(1),
    "chunked": hl.Chunked(7),
    "per layer": hl.PerLayer(3, 5, rank=1),
    "channel scale": hl.ChannelScale(),
    "mixed": {"*bias": hl.Dense(), "*": hl.Chunked(16)},
    "own": Scaled(),
}


def estimate(*args: Any, **settings: Any) -> hl.Summary:
    """The sizes, with nothing allocated for the hypernetwork."""
    return hl.hypernetize(*args, device="meta", **settings).summary()


def counted(module: nn.Module) -> tuple[int, int]:
    return (
        sum(p.numel() for p in module.parameters()),
        sum(p.numel() * p.element_size() for p in module.parameters()),
    )


@pytest.mark.parametrize("primary", PRIMARIES)
@pytest.mark.parametrize("head", HEADS)
def test_the_estimate_is_what_is_built(primary: str, head: str) -> None:
    net = PRIMARIES[primary][0]()
    arguments: dict[str, Any] = {"hidden": (5, 6), "head": HEADS[head]}
    if head == "mixed" and not any(name.endswith("bias") for name, _ in net.named_parameters()):
        arguments["head"] = hl.Chunked(16)
    found = estimate(net, SPACE, **arguments)
    model = hl.hypernetize(net, SPACE, **arguments)
    assert found == model.summary()
    for part, module in ((found.primary, net), (found.head, model.hypernet.head)):
        assert (part.parameters, part.bytes) == counted(module)
        assert part.trained == part.bytes
    assert (found.parameters, found.bytes) == counted(model)
    assert found.trunk.parameters == found.parameters - found.primary.parameters - (
        found.head.parameters
    )
    assert {row.name: row.shape for row in found.rows} == {
        name: tuple(tensor.shape) for name, tensor in model.predict(g=0.5).items()
    }
    assert found.predicted == sum(tensor.numel() for tensor in model.predict(g=0.5).values())


@settings(deadline=None, max_examples=30)
@given(
    width=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 5), max_size=3),
    dtype=st.sampled_from([None, torch.float64, torch.bfloat16]),
    raw=st.booleans(),
    head=st.sampled_from(sorted(set(HEADS) - {"mixed"})),
)
def test_the_estimate_is_exact_in_every_setting(
    width: int, hidden: list[int], dtype: torch.dtype | None, raw: bool, head: str
) -> None:
    inputs = {"z": hl.Normal(width), "task": hl.Categorical(3)}
    arguments: dict[str, Any] = {
        "hidden": hidden,
        "dtype": dtype,
        "encoding": None if raw else hl.CosSin(),
        "head": HEADS[head],
        "activation": "prelu",
    }
    found = estimate(mlp(), inputs, "2.*", **arguments)
    model = hl.hypernetize(mlp(), inputs, "2.*", **arguments)
    assert found == model.summary()
    assert (found.parameters, found.bytes) == counted(model)


def test_a_row_holds_the_parameters_that_belong_to_it_alone() -> None:
    found = estimate(
        mlp(), SPACE, hidden=(10,), head={"0.*": hl.Dense(), "*": hl.Chunked()}, dtype=torch.float64
    )
    assert [row.head for row in found.rows] == ["Dense", "Dense", "Chunked", "Chunked"]
    assert found.rows[0].parameters == 10 * 15
    assert found.rows[0].bytes == 8 * 10 * 15
    assert (found.rows[2].parameters, found.rows[2].bytes) == (None, None)
    dense = estimate(mlp(), SPACE)
    assert sum(row.parameters or 0 for row in dense.rows) == dense.head.parameters


def test_training_counts_gradients_and_state_of_what_is_trained() -> None:
    net = mlp()
    every = estimate(net, SPACE)
    assert (every.sgd_bytes, every.adam_bytes) == (3 * every.bytes, 4 * every.bytes)
    net.requires_grad_(False)
    frozen = estimate(net, SPACE)
    assert frozen.bytes == every.bytes
    assert frozen.primary.trained == 0
    rest = frozen.trunk.bytes + frozen.head.bytes
    assert frozen.sgd_bytes == frozen.primary.bytes + 3 * rest
    assert frozen.adam_bytes == frozen.primary.bytes + 4 * rest


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_takes_what_torch_optim_holds(optimizer: str) -> None:
    model = hl.hypernetize(mlp(), SPACE)
    made: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if optimizer == "sgd"
        else torch.optim.Adam(model.parameters())
    )
    model(torch.randn(2, 3), g=0.5).sum().backward()
    made.step()
    held = sum(p.nbytes + (0 if p.grad is None else p.grad.nbytes) for p in model.parameters())
    held += sum(
        value.nbytes
        for state in made.state.values()
        for key, value in state.items()
        if key != "step"
    )
    found = model.summary()
    assert held == (found.sgd_bytes if optimizer == "sgd" else found.adam_bytes)


def test_the_estimate_touches_nothing() -> None:
    net = convolutional()
    state, generator = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    estimate(net, SPACE, init="relative")
    estimate(net, SPACE, residual=False)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_the_estimate_allocates_nothing() -> None:
    with torch.device("meta"):
        net = nn.Linear(10**6, 10**6)
    found = estimate(net, SPACE, hidden=(1000,))
    assert found.head.parameters == 1000 * (10**12 + 10**6)
    assert found.bytes > 2**51


TABLE = """\
target    shape  predicted  head     parameters    bytes
0.weight  5 x 3         15  Dense           240    960 B
0.bias    5              5  Dense            80    320 B
2.weight  2 x 5         10  Chunked      shared
2.bias    2              2  Chunked      shared
all                     32                  434  1.7 KiB

part     parameters     bytes
primary          32     128 B
trunk        10,576  41.3 KiB
head            434   1.7 KiB
all          11,042  43.1 KiB

training without activations      bytes
SGD with momentum             129.4 KiB
Adam                          172.5 KiB

price
weights of the head for each predicted       13.6
moved by a step of Adam, primary alone      896 B
moved by a step of Adam, all            301.9 KiB"""


def test_the_table() -> None:
    found = estimate(mlp(), SPACE, head={"0.*": hl.Dense(), "*": hl.Chunked(4)})
    assert str(found) == TABLE


def test_the_price() -> None:
    model = hl.hypernetize(mlp(), SPACE)
    found = model.summary()
    assert found.weights_per_prediction == 16.0
    assert found.adam_traffic == 7 * counted(model)[1]
    assert found.added_seconds(1e6) == pytest.approx(7e-6 * counted(model.hypernet)[1])
    model.primary.requires_grad_(False)
    assert model.summary().adam_traffic == 7 * counted(model.hypernet)[1]


def test_the_table_of_a_scalar_and_of_a_very_long_name() -> None:
    net = nn.ModuleDict({"a" * 40: nn.ModuleDict({"b" * 40: nn.PReLU()}), "short": nn.Linear(2, 2)})
    net.register_parameter("gain", nn.Parameter(torch.ones(())))
    lines = str(estimate(net, SPACE)).splitlines()
    assert lines[1].split()[:2] == ["gain", "scalar"]
    assert lines[2].split()[0] == "a" * 22 + "..." + "b" * 16 + ".weight"
    assert len(lines[2].split()[0]) == 48
    assert len({len(line) for line in lines[:5]}) == 1


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (3 * 2**29, "1.5 GiB"),
        (5000 * 2**40, "5,000.0 TiB"),
    ],
)
def test_bytes_in_words(size: int, text: str) -> None:
    assert memory.as_text(size) == text


# --- what fits --------------------------------------------------------------


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_to(size: int | None) -> None:
        monkeypatch.setattr(memory, "available_memory", lambda device: size)

    return set_to


def huge() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4096, 4096), nn.Linear(4096, 1000))


def test_what_cannot_fit_is_refused_with_the_numbers_and_the_head_that_would(limit: Any) -> None:
    limit(GIB)
    with pytest.raises(hl.MemoryLimitError) as caught:
        hl.hypernetize(huge(), SPACE, device="cpu")
    assert isinstance(caught.value, hl.ConfigurationError)
    assert isinstance(caught.value, MemoryError)
    text = str(caught.value)
    assert text == (
        "The parameters of the hypernetwork (head=Dense, 16 features) need 1.2 GiB; the device "
        "'cpu' has 1.0 GiB. It predicts 20,878,312 entries, most of them for '0.weight' "
        "(16,777,216), '1.weight' (4,096,000), '0.bias' (4,096). Use head=hl.LowRank(32), with "
        "which they need 210.1 MiB, and 840.6 MiB to train with Adam. hl.hypernetize(..., "
        "device='meta').summary() lists the sizes without allocating anything."
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


MIB = 2**20


def refuse(head: hl.Head) -> None:
    shapes = {name: p.shape for name, p in huge().named_parameters()}
    cpu = torch.device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = {"dtype": torch.float32, "device": cpu}
        memory.refuse_oversize(head, (2, 16, 128), lambda head: None, shapes, **settings)


@pytest.mark.parametrize(
    ("size", "advice"),
    [
        (GIB, "hl.LowRank(32)"),
        (128 * MIB, "hl.LowRank(4)"),
        (64 * MIB, "hl.LowRank(2)"),
        (40 * MIB, "hl.LowRank(1)"),
        (32 * MIB, "hl.Chunked(4096)"),
    ],
)
def test_the_first_head_that_can_be_trained_is_named_and_can_be_built(
    limit: Any, size: int, advice: str
) -> None:
    limit(size)
    with pytest.raises(hl.MemoryLimitError) as caught:
        refuse(hl.Dense())
    assert f"Use head={advice}, with which" in str(caught.value)
    refuse(eval(advice))


def test_for_many_equal_layers_the_advice_is_one_network_for_all(limit: Any) -> None:
    limit(32 * MIB)
    shapes = {f"layers.{i}.weight": (512, 512) for i in range(100)}
    with pytest.raises(hl.MemoryLimitError, match=r"Use head=hl.PerLayer\(rank=8\), with which"):
        hl.HyperNet(SPACE, shapes, device="cpu")
    assert hl.HyperNet(SPACE, shapes, device="cpu", head=hl.PerLayer(rank=8)) is not None


def test_where_none_can_be_trained_one_that_fits_is_named(limit: Any) -> None:
    limit(8 * MIB)
    with pytest.raises(hl.MemoryLimitError, match=r"Use head=hl.Chunked\(4096\), with which"):
        refuse(hl.Dense())
    with pytest.raises(UserWarning, match="to train with Adam"):
        refuse(hl.Chunked(4096))


def test_where_no_head_fits_the_advice_is_another(limit: Any) -> None:
    limit(4 * MIB)
    with pytest.raises(hl.MemoryLimitError, match=r"No head fits: .* hidden layers \(16, 128\)"):
        refuse(hl.LowRank(1))


def test_what_fits_but_cannot_be_trained_is_built_with_a_warning(limit: Any) -> None:
    needed = estimate(mlp(), SPACE).trunk.bytes + estimate(mlp(), SPACE).head.bytes
    limit(4 * needed - 1)
    with pytest.warns(
        UserWarning, match=r"need 43.3 KiB, and 173.2 KiB to train .* has 173.2 KiB"
    ) as caught:
        hl.HyperNet(SPACE, {name: p.shape for name, p in mlp().named_parameters()})
    assert caught[0].filename == __file__
    limit(4 * needed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hl.hypernetize(mlp(), SPACE)
    limit(needed)
    with pytest.warns(UserWarning, match="to train with Adam"):
        hl.hypernetize(mlp(), SPACE)
    limit(needed - 1)
    with pytest.raises(hl.MemoryLimitError):
        hl.hypernetize(mlp(), SPACE)


def test_nothing_is_refused_on_the_meta_device_or_where_the_memory_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert memory.available_memory(torch.device("meta")) is None
    assert hl.hypernetize(huge(), SPACE).hypernet.head.weight.is_meta
    monkeypatch.setattr(memory, "available_memory", lambda device: None)
    hl.hypernetize(mlp(), SPACE)


def test_users_heads_are_counted_as_well_and_those_that_ignore_the_device(limit: Any) -> None:
    class Careless(Scaled):
        def make(self, dtype: torch.dtype, device: torch.device) -> None:
            self.direction = nn.Parameter(torch.empty(2**50))

    limit(GIB)
    with pytest.raises(hl.MemoryLimitError, match=r"head=Careless, .* need 4,096.0 TiB"):
        refuse(Careless())


def test_a_head_that_cannot_be_counted_is_built_all_the_same(limit: Any) -> None:
    class Reads(Scaled):
        def make(self, dtype: torch.dtype, device: torch.device) -> None:
            super().make(dtype, device)
            self.scale = torch.ones((), device=device).item()

    limit(GIB)
    hl.hypernetize(mlp(), SPACE, head=Reads())


def test_counting_draws_no_random_numbers(limit: Any) -> None:
    limit(GIB)
    before = torch.get_rng_state()
    refuse(hl.LowRank(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_head_that_is_counted_is_a_copy(limit: Any) -> None:
    limit(GIB)
    head = hl.LowRank(2)
    refuse(head)
    assert not head.features


# --- what there is ----------------------------------------------------------


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, []),
        (
            {
                "proc/self/cgroup": "0::/user/job\n",
                "sys/fs/cgroup/user/job/memory.max": "max\n",
                "sys/fs/cgroup/user/memory.max": "2048\n",
            },
            [2048],
        ),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "4096\n",
                "sys/fs/cgroup/memory.max": "512\n",
            },
            [4096, 512],
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory,hugetlb:/job\n0::/\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1024\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            [1024, 9223372036854771712],
        ),
        (
            {
                "proc/self/cgroup": "0::/seen/from/outside\n",
                "sys/fs/cgroup/memory.max": "100\n",
            },
            [100],
        ),
    ],
    ids=["none", "v2", "v2 nested", "v1", "container"],
)
def test_limits_of_control_groups(tmp_path: Path, files: dict[str, str], limits: list[int]) -> None:
    assert list(memory._cgroup_limits(written(tmp_path, files))) == limits


def test_the_cpu_has_its_memory_or_the_lowest_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_physical_memory", lambda: [8 * GIB])
    monkeypatch.setattr(memory, "_cgroup_limits", lambda: [2**63, GIB])
    assert memory.available_memory(cpu) == GIB
    monkeypatch.setattr(memory, "_cgroup_limits", list)
    assert memory.available_memory(cpu) == 8 * GIB
    monkeypatch.setattr(memory, "_physical_memory", list)
    assert memory.available_memory(cpu) is None


def test_the_physical_memory_is_plausible_where_the_system_tells_it() -> None:
    for size in memory._physical_memory():
        assert 2**26 < size < 2**50


def test_a_system_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(memory.os, "sysconf", raising=False)
    assert list(memory._physical_memory()) == []


def test_a_gpu_has_what_is_free_and_what_is_held_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    assert memory.available_memory(torch.device("cuda:0")) == 4 * GIB


# --- what a call leaves ----------------------------------------------------------------


def _keep(model: hl.HyperModel, x: Tensor) -> None:
    with contextlib.suppress(hl.BindError):  # some run sample by sample, and cannot be kept
        model.bind(g=torch.rand(len(x)))(x)


def _export(model: hl.HyperModel, x: Tensor) -> None:
    with contextlib.suppress(hl.ConfigurationError):  # the old weight norm cannot be copied
        model.at(g=0.5)(x)


def _train(model: hl.HyperModel, x: Tensor) -> None:
    model(x, g=torch.rand(len(x))).sum().backward()
    model.zero_grad()


# Their modules hold themselves, and so do the copies.
CYCLES = ("bound method", "back reference")


@pytest.mark.filterwarnings("ignore:The primary cannot run once on the whole batch")
@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda model, x: model(x, g=0.5), id="one set"),
        pytest.param(lambda model, x: model.sweep(x, g=torch.rand(3)), id="sweep"),
        pytest.param(lambda model, x: model(x, g=torch.rand(len(x))), id="per sample"),
        pytest.param(_keep, id="per sample, kept"),
        pytest.param(_export, id="at"),
        pytest.param(_train, id="training"),
    ],
)
@pytest.mark.parametrize("primary", [name for name in PRIMARIES if name not in CYCLES])
def test_a_call_leaves_no_tensors_to_the_garbage_collector(primary: str, use: Any) -> None:
    make, data = PRIMARIES[primary]
    model, x = hl.hypernetize(make(), SPACE).eval(), data()

    def tensors() -> int:
        return sum(isinstance(one, Tensor) for one in gc.get_objects())

    for _ in range(2):  # plans are made, then followed
        use(model, x)
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        for _ in range(3):
            use(model, x)
        assert tensors() <= before
    finally:
        gc.enable()

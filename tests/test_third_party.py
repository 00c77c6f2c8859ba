"""Unedited models that nobody here wrote, and torch's own ways to hold a weight.

One table: every entry gets every test. What is built from a config is small
and random; nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import hyperlight as hl
from hyperlight.targets import Targets
from tests.models import PRIMARIES, one_graph
from tests.reference import copied_primary, naive_theta_gradients, two_stage_gradients

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SPACE: dict[str, hl.Input] = {"gamma": hl.Uniform(0.0, 1.0), "noise": hl.Normal(2)}
Call = Callable[[Callable[..., Any]], Tensor]


@dataclass(frozen=True)
class Subject:
    """A model under test.

    Attributes:
        make: builds it.
        call: runs what it is given, the model or a bound network, on fixed data.
        targets: what is predicted.
        dtype: what it is tested in; a quantised layer knows float32 alone.
        training: in train mode, which a checkpoint inside transformers waits for.
        copies: whether torch can deepcopy it at all.
    """

    make: Callable[[], nn.Module]
    call: Call
    targets: Targets = None
    dtype: torch.dtype = torch.float64
    training: bool = False
    copies: bool = True

    def built(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().to(self.dtype).train(self.training)

    def close(self, a: Tensor, b: Tensor) -> bool:
        tolerance = 1e-10 if self.dtype == torch.float64 else 1e-5
        return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


# --- the data ---------------------------------------------------------------


def tokens() -> Tensor:
    return torch.tensor([[1, 5, 3, 7, 2, 9], [4, 4, 8, 0, 6, 1]])


def images(size: int = 16) -> Tensor:
    drawn = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    return drawn.to(torch.get_default_dtype())


def rows(count: int = 4) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0))


# --- models of other libraries ----------------------------------------------


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def checkpointed_bert() -> nn.Module:
    net = bert()
    net.gradient_checkpointing_enable()
    return net


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=20,
            n_positions=16,
            n_embd=8,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    )


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=16,
        )
    )


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=3,
        )
    )


def lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    return get_peft_model(gpt2(), config)


def voxelmorph() -> nn.Module:
    from monai.networks.nets import VoxelMorph, VoxelMorphUNet

    backbone = VoxelMorphUNet(
        spatial_dims=2,
        in_channels=2,
        unet_out_channels=4,
        channels=(4, 4, 4, 4, 4, 4),
        final_conv_channels=(4,),
    )
    return VoxelMorph(backbone, integration_steps=2, spatial_dims=2)


def unet() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(2, 1, 2, channels=(2, 4, 8), strides=(2, 2), num_res_units=1)


def accelerated() -> nn.Module:
    """A layer whose forward accelerate has wrapped: a partial that names a bound method."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    for layer in net:
        add_hook_to_module(layer, ModelHook())
    return net


def logits(**data: Callable[[], Tensor]) -> Call:
    def call(net: Callable[..., Any]) -> Tensor:
        made = {name: make() for name, make in data.items()}
        return net(**made).logits

    return call


def hidden_states(net: Callable[..., Any]) -> Tensor:
    """Transformers collects these with hooks, which it registers during the call."""
    return torch.stack(net(input_ids=tokens(), output_hidden_states=True).hidden_states)


THIRD_PARTY: dict[str, Subject] = {
    "bert": Subject(bert, logits(input_ids=tokens)),
    "bert, all": Subject(bert, logits(input_ids=tokens), "*"),
    "bert, hidden states": Subject(bert, hidden_states),
    "bert, hidden states, one layer": Subject(bert, hidden_states, "*.layer.1.*"),
    "bert, checkpointed": Subject(checkpointed_bert, logits(input_ids=tokens), training=True),
    "gpt2": Subject(gpt2, logits(input_ids=tokens)),
    "t5": Subject(t5, logits(input_ids=tokens, decoder_input_ids=tokens)),
    "llama": Subject(llama, logits(input_ids=tokens)),
    "vit": Subject(vit, logits(pixel_values=lambda: images(8))),
    "lora": Subject(lora, logits(input_ids=tokens), "*lora_*"),
    "voxelmorph": Subject(
        voxelmorph, lambda net: torch.cat(net(images(), images().flip(-1)), dim=1)
    ),
    "unet": Subject(unet, lambda net: net(images())),
    "accelerate": Subject(accelerated, lambda net: net(rows())),
}

# --- plain torch ------------------------------------------------------------


def spectral() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 2))


def old_spectral() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 2))


def lazy() -> nn.Module:
    net = nn.Sequential(nn.LazyConv1d(4, 2), nn.LazyBatchNorm1d(), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(2, 1, 3))
    return net


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    net[1].requires_grad_(False)
    return net


def quantised() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return torch.ao.quantization.quantize_dynamic(net, {"0"})


class ReentrantlyCheckpointed(nn.Module):
    """One reentrant segment; torch supports no second one above a shared graph."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x.clone().requires_grad_(), use_reentrant=True)


class AsksItself(nn.Module):
    """Reads dtype and device off its parameters, as much of the world's code does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = next(self.parameters())
        penalty = sum(p.square().sum() for p in self.parameters())
        return self.linear(x.to(first.device, first.dtype)) + penalty


def on_rows(net: Callable[..., Any]) -> Tensor:
    return net(rows().to(torch.get_default_dtype()))


PLAIN: dict[str, Subject] = {
    "spectral norm": Subject(spectral, on_rows),
    "old spectral norm": Subject(old_spectral, on_rows),
    "lazy": Subject(lazy, lambda net: net(on_rows(lambda x: x).unsqueeze(1))),
    "frozen": Subject(frozen, on_rows),
    "quantised": Subject(quantised, on_rows, dtype=torch.float32),
    "one reentrant checkpoint": Subject(ReentrantlyCheckpointed, on_rows),
    "asks itself": Subject(AsksItself, on_rows),
}


def _shared(name: str, make: Callable[[], nn.Module], data: Callable[[], Tensor]) -> Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = data()
    copies = name != "old weight norm"
    return Subject(make, lambda net: net(x.to(torch.get_default_dtype())), copies=copies)


SUBJECTS = {
    **{name: _shared(name, make, data) for name, (make, data) in PRIMARIES.items()},
    **PLAIN,
    **THIRD_PARTY,
}


@pytest.fixture(autouse=True)
def _one_thread_and_the_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    """Data come in the subject's dtype; small models are faster on one thread."""
    spec = getattr(request.node, "callspec", None)
    subject = spec and spec.params.get("subject")
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(subject.dtype if subject else default)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(default)


def table(subjects: dict[str, Subject]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("subject", subjects.values(), ids=subjects.keys())


every_subject = table(SUBJECTS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*performance drop .* batching rule.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Using PyTorch native grid_sample.*:UserWarning"),
]


def a_gamma(model: hl.HyperModel) -> dict[str, Tensor]:
    return model.sample(generator=torch.Generator().manual_seed(1))


def everything(net: nn.Module) -> dict[str, Any]:
    """All that a module tree holds, by name, with copies of what may change in place."""
    held: dict[str, Any] = {}
    for path, module in net.named_modules():
        for name, value in module.__dict__.items():
            kept = tuple(value.items()) if isinstance(value, dict) else value
            held[f"{path}:{name}"] = kept
    return held


def assert_same(found: dict[str, Any], held: dict[str, Any]) -> None:
    assert found.keys() == held.keys()
    for path, value in found.items():
        before = held[path]
        if isinstance(before, tuple) and isinstance(value, tuple):
            assert len(value) == len(before), path
            for now, then in zip(value, before, strict=True):
                if isinstance(now, tuple):  # a name and what stands there
                    assert now[0] == then[0], path
                    now, then = now[1], then[1]
                assert now is then, path
        else:
            assert value is before, path


def loss_of(call: Call) -> Callable[[Callable[..., Any]], Tensor]:
    return lambda net: call(net).square().mean()


# --- the tests --------------------------------------------------------------


@every_subject
def test_forward_equals_a_copy_with_the_predicted_weights_in_it(subject: Subject) -> None:
    primary = subject.built()
    model = hl.hypernetize(primary, SPACE, subject.targets, init="fan_out")
    before = subject.call(copied_primary(primary, {}))
    for seed in (1, 2):
        gamma = model.sample(generator=torch.Generator().manual_seed(seed))
        y = subject.call(functools.partial(model, **gamma))
        assert subject.close(y, subject.call(copied_primary(primary, model.predict(**gamma))))
        assert not torch.allclose(y, before, rtol=1e-3, atol=1e-4), "weights unused"


@every_subject
def test_with_zero_initialisation_the_model_is_the_primary_bit_for_bit(subject: Subject) -> None:
    primary = subject.built()
    expected = subject.call(primary)
    model = hl.hypernetize(primary, SPACE, subject.targets, init="zero")
    assert torch.equal(subject.call(functools.partial(model, **a_gamma(model))), expected)


@every_subject
def test_gradients_equal_the_chain_rule_through_a_copy(subject: Subject) -> None:
    primary = subject.built()
    model = hl.hypernetize(primary, SPACE, subject.targets, init="fan_out")
    gamma, loss = a_gamma(model), loss_of(subject.call)
    expected = two_stage_gradients(model, gamma, loss)
    theta = {name: tensor.detach() for name, tensor in model.predict(**gamma).items()}
    for name, gradient in naive_theta_gradients(primary, theta, loss).items():
        if f"primary.{name}" in expected:  # theta = theta0 + h: theta0 gets theta's gradient
            assert subject.close(expected[f"primary.{name}"], gradient), name
    loss(functools.partial(model, **gamma)).backward()
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, key
            continue
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert subject.close(found, expected[key]), key
    assert any(p.grad.abs().sum() > 0 for p in model.hypernet.head.parameters())
    assert any(p.grad.abs().sum() > 0 for p in model.hypernet.trunk.parameters())


@every_subject
def test_nothing_of_the_primary_changes(subject: Subject) -> None:
    primary = subject.built()
    held, state = everything(primary), copy.deepcopy(primary.state_dict())
    model = hl.hypernetize(primary, SPACE, subject.targets, init="fan_out")
    for _ in range(2):
        loss_of(subject.call)(functools.partial(model, **a_gamma(model))).backward()
    assert_same(everything(primary), held)
    for name, value in primary.state_dict().items():
        if isinstance(value, Tensor):  # a quantised layer keeps others
            assert torch.equal(value, state[name]), name


@every_subject
def test_a_step_of_an_optimizer_trains_what_is_not_frozen(subject: Subject) -> None:
    primary = subject.built()
    model = hl.hypernetize(primary, SPACE, subject.targets, init="fan_out")
    gamma = a_gamma(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loss_of(subject.call)(functools.partial(model, **gamma)).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        if parameter.grad is None or not parameter.grad.any():
            assert torch.equal(parameter, before[name]), name
    assert not torch.equal(model.hypernet.head.weight, before["hypernet.head.weight"])
    y = subject.call(functools.partial(model, **gamma))
    assert subject.close(y, subject.call(copied_primary(primary, model.predict(**gamma))))


@every_subject
def test_a_deep_copy_is_equal_and_separate(subject: Subject) -> None:
    model = hl.hypernetize(subject.built(), SPACE, subject.targets, init="fan_out")
    gamma = a_gamma(model)
    expected = subject.call(functools.partial(model, **gamma)).detach()
    if not subject.copies:
        with pytest.raises(RuntimeError, match=r"torch\.nn\.utils\.weight_norm"):
            copy.deepcopy(model.primary)
        return
    twin = copy.deepcopy(model)
    assert torch.equal(subject.call(functools.partial(twin, **gamma)), expected)
    with torch.no_grad():
        for parameter in twin.hypernet.parameters():
            parameter.add_(0.5)
    assert torch.equal(subject.call(functools.partial(model, **gamma)), expected)
    assert not torch.allclose(subject.call(functools.partial(twin, **gamma)), expected, atol=1e-4)


@every_subject
def test_an_independent_copy_for_one_gamma_is_equal(subject: Subject) -> None:
    model = hl.hypernetize(subject.built(), SPACE, subject.targets, init="fan_out")
    gamma = a_gamma(model)
    if not subject.copies:
        with pytest.raises(hl.ConfigurationError, match=r"model\.at copies the primary"):
            model.at(**gamma)
        return
    plain = model.at(**gamma)
    assert type(plain) is type(model.primary)
    assert plain.state_dict().keys() == model.primary.state_dict().keys()
    y = subject.call(functools.partial(model, **gamma))
    assert subject.close(subject.call(plain), y)


# Whose call makes one tensor of several along another dimension than the first.
JOINED = ("bert, hidden states", "bert, hidden states, one layer", "voxelmorph")

# What runs one sample after another. T5 predicts its position bias from shared numbers and permutes
# it as a tensor of three dimensions; vmap fails at scaled_dot_product_attention with a bias that
# needs gradients.
LOOPED = ("t5",)


def told_if_looped(subject: Subject) -> contextlib.AbstractContextManager[Any]:
    if subject in [SUBJECTS[name] for name in LOOPED]:
        return pytest.warns(UserWarning, match="cannot run once on the whole batch.*one after")
    return contextlib.nullcontext()


@table({name: subject for name, subject in SUBJECTS.items() if name not in JOINED})
def test_a_sweep_equals_one_call_after_another(subject: Subject) -> None:
    model = hl.hypernetize(subject.built(), SPACE, subject.targets, init="fan_out")
    gamma = model.sample((3,), generator=torch.Generator().manual_seed(1))
    with told_if_looped(subject):
        y = subject.call(functools.partial(model.sweep, **gamma))
    for i in range(3):
        one = {name: value[i] for name, value in gamma.items()}
        assert subject.close(y[i], subject.call(functools.partial(model, **one)))


INDEPENDENT = ("bert", "bert, all", "gpt2", "t5", "llama", "vit", "lora", "voxelmorph", "unet")


@table({name: THIRD_PARTY[name] for name in INDEPENDENT})
def test_one_gamma_per_sample_equals_one_call_after_another(subject: Subject) -> None:
    model = hl.hypernetize(subject.built(), SPACE, subject.targets, init="fan_out")
    samples = len(subject.call(model.primary))
    gamma = model.sample((samples,), generator=torch.Generator().manual_seed(1))
    with told_if_looped(subject) as told:
        y = subject.call(functools.partial(model, **gamma))
    assert model.last_run.way == ("batch" if told is None else "loop"), model.last_run
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(y.square().mean(), parameters, allow_unused=True)
    rows = []
    for i in range(samples):
        one = {name: value[i] for name, value in gamma.items()}
        rows.append(subject.call(functools.partial(model, **one))[i])
    expected = torch.stack(rows)
    assert subject.close(y, expected)
    wanted = torch.autograd.grad(expected.square().mean(), parameters, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        assert a is None or subject.close(a, b)


EAGER = {name: THIRD_PARTY[name] for name in ("bert", "gpt2", "t5", "llama", "vit", "unet")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@table(EAGER)
def test_half_precision_is_the_same_as_a_copy(subject: Subject, dtype: torch.dtype) -> None:
    primary = subject.built().to(dtype)
    torch.set_default_dtype(dtype)
    model = hl.hypernetize(primary, SPACE, subject.targets, init="fan_out")
    gamma = a_gamma(model)
    y = subject.call(functools.partial(model, **gamma))
    assert y.dtype == dtype
    assert torch.equal(y, subject.call(copied_primary(primary, model.predict(**gamma))))
    y.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@table(EAGER)
def test_autocast_keeps_the_weights_of_every_gamma_apart(subject: Subject) -> None:
    torch.set_default_dtype(torch.float32)
    primary = subject.built().float()
    model = hl.hypernetize(primary, SPACE, subject.targets, init="fan_out")
    noise, found = torch.zeros(2), []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for gamma in (0.1, 0.9):
            y = subject.call(functools.partial(model, gamma=gamma, noise=noise))
            theta = model.predict(gamma=gamma, noise=noise)
            assert torch.equal(y, subject.call(copied_primary(primary, theta)))
            found.append(y)
    assert not torch.allclose(*(y.float() for y in found))


@table({name: THIRD_PARTY[name] for name in ("t5", "unet")})
def test_a_model_made_without_memory_is_filled_by_a_state_dict(subject: Subject) -> None:
    model = hl.hypernetize(subject.built(), SPACE, subject.targets, init="fan_out")
    with torch.device("meta"):
        primary = subject.make().to(subject.dtype).eval()
        empty = hl.hypernetize(primary, SPACE, subject.targets, init="fan_out")
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(model.state_dict())
    gamma = a_gamma(model)
    expected = subject.call(functools.partial(model, **gamma))
    assert torch.equal(subject.call(functools.partial(filled, **gamma)), expected)


# What torch.compile takes as one graph. It does not take voxelmorph as it is; and bert asks
# inspect for the signature of a method, which it follows only in a module it was given.
@one_graph
@table({name: THIRD_PARTY[name] for name in ("gpt2", "t5", "llama", "vit", "lora", "unet")})
def test_compile_makes_one_graph_of_it(subject: Subject) -> None:
    torch.compiler.reset()
    model = hl.hypernetize(subject.built(), SPACE, subject.targets, init="fan_out")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    held = everything(model.primary)
    for seed in (1, 2):
        gamma = model.sample(generator=torch.Generator().manual_seed(seed))
        expected = subject.call(functools.partial(model, **gamma))
        assert subject.close(subject.call(functools.partial(compiled, **gamma)), expected)
    assert_same(everything(model.primary), held)


def test_compile_with_breaks_is_right_where_one_graph_is_not_possible() -> None:
    torch.compiler.reset()
    subject = THIRD_PARTY["bert"]
    torch.set_default_dtype(subject.dtype)
    model = hl.hypernetize(subject.built(), SPACE, subject.targets, init="fan_out")
    compiled = torch.compile(model, backend="eager")
    for seed in (1, 2):
        gamma = model.sample(generator=torch.Generator().manual_seed(seed))
        expected = subject.call(functools.partial(model, **gamma))
        assert subject.close(subject.call(functools.partial(compiled, **gamma)), expected)


@table({name: THIRD_PARTY[name] for name in ("gpt2", "vit", "unet")})
def test_transforms_of_torch_func_see_through_a_model_call(subject: Subject) -> None:
    model = hl.hypernetize(subject.built(), SPACE, subject.targets, hidden=(4,), init="fan_out")
    gamma, loss = a_gamma(model), loss_of(subject.call)
    noise = gamma["noise"]

    def at(parameters: dict[str, Tensor], g: Tensor) -> Tensor:
        def run(*args: Any, **kwargs: Any) -> Any:
            kwargs |= {"gamma": g, "noise": noise}
            return torch.func.functional_call(model, parameters, args, kwargs)

        return loss(run)

    parameters = dict(model.named_parameters())
    expected = two_stage_gradients(model, gamma, loss)
    found = torch.func.grad(at)(parameters, gamma["gamma"])
    for name, gradient in found.items():
        assert subject.close(gradient, expected[name]), name

    g = gamma["gamma"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(at(parameters, g), g)
    assert subject.close(torch.func.jacrev(at, argnums=1)(parameters, g.detach()), slope)
    by_gamma, step = torch.func.grad(at, argnums=1), 1e-5
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # has a second one
        curvature = torch.func.grad(by_gamma, argnums=1)(parameters, g.detach())
    ends = [by_gamma(parameters, g.detach() + d) for d in (step, -step)]
    assert torch.allclose(curvature, (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-7)


@table({name: THIRD_PARTY[name] for name in ("gpt2", "t5")})
def test_an_average_of_weights_is_the_model_of_the_averaged_weights(subject: Subject) -> None:
    model = hl.hypernetize(subject.built(), SPACE, subject.targets, init="fan_out")
    average = torch.optim.swa_utils.AveragedModel(model)
    states = []
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        average.update_parameters(model)
        states.append(copy.deepcopy(model.state_dict()))
    gamma = a_gamma(model)
    found = subject.call(functools.partial(average, **gamma))
    model.load_state_dict(
        {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    )
    assert subject.close(found, subject.call(functools.partial(model, **gamma)))


class TwoReentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.a, x.clone().requires_grad_(), use_reentrant=True)
        return checkpoint(self.b, torch.tanh(x), use_reentrant=True)


def test_two_reentrant_checkpoints_fail_aloud_and_work_on_leaves() -> None:
    primary = TwoReentrant().double()
    model = hl.hypernetize(primary, SPACE)
    gamma, loss = a_gamma(model), loss_of(lambda net: net(rows().double()))
    expected = two_stage_gradients(model, gamma, loss)
    with pytest.raises(RuntimeError, match="second time"):
        loss(functools.partial(model, **gamma)).backward()

    # the way out for code that cannot be changed: cut the graph at the weights
    model.zero_grad()
    theta = model.predict(**gamma)
    leaves = {name: t.detach().requires_grad_() for name, t in theta.items()}
    loss(hl.bind(primary, leaves)).backward()
    torch.autograd.backward(list(theta.values()), [leaf.grad for leaf in leaves.values()])
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-10, atol=1e-12), name

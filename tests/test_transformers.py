"""Networks of ``transformers`` with one set of weights per sample, against single sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hyperlight as hl
from hyperlight.heads import ScaledWeight

transformers = pytest.importorskip("transformers")

B, T = 4, 9
LOW_RANK = hl.LowRank(2)
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16}
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def llama(attention: str) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **SMALL,
            vocab_size=32,
            intermediate_size=24,
            num_key_value_heads=2,
            attn_implementation=attention,
        )
    )


def gpt2(attention: str) -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=32,
            n_embd=16,
            n_layer=2,
            n_head=4,
            n_positions=32,
            resid_pdrop=0.0,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=None,
            attn_implementation=attention,
        )
    )


def bert(attention: str) -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(
            **SMALL,
            **CALM,
            vocab_size=32,
            intermediate_size=24,
            max_position_embeddings=32,
            attn_implementation=attention,
        )
    )


def vit(attention: str) -> nn.Module:
    return transformers.ViTModel(
        transformers.ViTConfig(
            **SMALL,
            **CALM,
            intermediate_size=24,
            image_size=8,
            patch_size=4,
            attn_implementation=attention,
        )
    )


def t5(attention: str) -> nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=32,
            d_model=16,
            d_ff=24,
            num_layers=2,
            num_heads=4,
            d_kv=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def _model(
    make: Callable[[str], nn.Module], attention: str, head: hl.Head = LOW_RANK
) -> hl.HyperModel:
    torch.manual_seed(0)
    primary = make(attention).double().train()
    inputs = {"z": hl.Normal(3)}
    init = hl.Relative(0.5)
    return hl.hypernetize(primary, inputs, hidden=(8,), head=head, init=init).double()


def _gamma(seed: int = 0) -> Tensor:
    return torch.randn(B, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _ids(seed: int) -> Tensor:
    return torch.randint(2, 32, (B, T), generator=torch.Generator().manual_seed(seed))


def _right_padded() -> Tensor:
    return (torch.arange(T) < torch.tensor([T, 5, 7, 3])[:, None]).long()


def _main(output: Any) -> Tensor:
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def _one_by_one(model: hl.HyperModel, z: Tensor, arguments: dict[str, Tensor]) -> Tensor:
    rows = [
        _main(model(**{k: v[i : i + 1] for k, v in arguments.items()}, z=z[i], use_cache=False))
        for i in range(B)
    ]
    return torch.cat(rows)


def _gradients(model: hl.HyperModel, output: Tensor) -> dict[str, Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    found = torch.autograd.grad(
        (output * weights).sum(), list(model.parameters()), materialize_grads=True
    )
    return dict(zip(dict(model.named_parameters()), found, strict=True))


def _close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


TEXT = {"llama": llama, "gpt2": gpt2, "bert": bert}


@pytest.mark.parametrize("name", TEXT)
def test_scaled_weights_run_once_and_are_not_built(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(TEXT[name], "sdpa", hl.ChannelScale())
    z, arguments = _gamma(), {"input_ids": _ids(0), "attention_mask": _right_padded()}
    expected = _one_by_one(model, z, arguments)

    def refuse(self: object) -> Tensor:
        raise AssertionError("the matrix was built")

    monkeypatch.setattr(ScaledWeight, "dense", refuse)
    output = _main(model(**arguments, z=z, use_cache=False))
    assert model.last_run.way == "batch", model.last_run
    _close(output, expected)
    _close(_gradients(model, output), _gradients(model, expected))


@pytest.mark.parametrize("kind", ["no mask", "mask", "mask and checkpoints"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TEXT)
def test_a_forward_runs_on_the_true_batch(name: str, attention: str, kind: str) -> None:
    model = _model(TEXT[name], attention)
    if "checkpoints" in kind:
        model.primary.gradient_checkpointing_enable({"use_reentrant": False})
    for seed in range(3):
        z, arguments = _gamma(seed), {"input_ids": _ids(seed)}
        if kind != "no mask":
            # In the third call nothing is padded, where transformers leaves the mask out.
            arguments["attention_mask"] = _right_padded() if seed < 2 else torch.ones(B, T).long()
        output = _main(model(**arguments, z=z, use_cache=False))
        assert model.last_run.way == "batch", model.last_run.reason
        expected = _one_by_one(model, z, arguments)
        _close(output, expected)
        _close(_gradients(model, output), _gradients(model, expected))


def _generated(net: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    return net.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )


@pytest.mark.parametrize("padded", [False, True], ids=["full", "left padded"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [llama, gpt2], ids=["llama", "gpt2"])
def test_generate_equals_one_by_one(
    make: Callable[[str], nn.Module], attention: str, padded: bool
) -> None:
    model = _model(make, attention).eval()
    for seed, length in ((0, T), (1, T), (2, B)):  # the last prompt is as long as the batch
        z, ids = _gamma(seed), _ids(seed)[:, :length]
        mask = _right_padded().flip(1)[:, -length:] if padded else None
        found = _generated(model.bind(z=z), ids, mask)
        for i in range(B):
            own = None if mask is None else mask[i : i + 1]
            assert torch.equal(
                found[i : i + 1], _generated(model.bind(z=z[i]), ids[i : i + 1], own)
            )
    assert len({tuple(row.tolist()) for row in found[:, length:]}) > 1  # the sets differ


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_images(attention: str) -> None:
    model = _model(vit, attention)
    for seed in range(2):
        torch.manual_seed(seed)
        z, x = _gamma(seed), torch.randn(B, 3, 8, 8, dtype=torch.float64)
        output = model(pixel_values=x, z=z).last_hidden_state
        assert model.last_run.way == "batch", model.last_run.reason
        rows = [model(pixel_values=x[i : i + 1], z=z[i]).last_hidden_state for i in range(B)]
        _close(output, torch.cat(rows))
        _close(_gradients(model, output), _gradients(model, torch.cat(rows)))


@quiet  # it may fall back, and says so
def test_an_encoder_and_decoder() -> None:
    model = _model(t5, "eager")
    for seed in range(2):
        arguments = {"input_ids": _ids(seed), "decoder_input_ids": _ids(seed + 9)[:, :B]}
        arguments["attention_mask"] = _right_padded()
        z = _gamma(seed)
        output = _main(model(**arguments, z=z, use_cache=False))
        expected = _one_by_one(model, z, arguments)
        _close(output, expected)
        _close(_gradients(model, output), _gradients(model, expected))


def test_a_loss_is_that_of_the_batch() -> None:
    model, z, ids = _model(llama, "sdpa"), _gamma(), _ids(0)
    output = model(input_ids=ids, labels=ids, z=z, use_cache=False)
    assert model.last_run.way == "batch"
    assert output.loss.shape == ()
    logits = _one_by_one(model, z, {"input_ids": ids}).float()  # as transformers does
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    found, wanted = _gradients(model, output.loss), _gradients(model, expected)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_cache_holds_the_batch() -> None:
    """The keys and values of a first call serve in a second, step by step."""
    model, z, ids = _model(llama, "sdpa").eval(), _gamma(), _ids(0)
    net = model.bind(z=z)
    with torch.no_grad():
        first = net(ids[:, :5], use_cache=True)
        assert first.past_key_values.layers[0].keys.shape[0] == B
        rest = net(ids[:, 5:], past_key_values=first.past_key_values, use_cache=True)
        both = torch.cat([first.logits, rest.logits], 1)
        _close(both, _one_by_one(model, z, {"input_ids": ids}))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_output_has_the_batch_in_place(attention: str) -> None:
    model, z, ids = _model(bert, attention), _gamma(), _ids(0)
    wanted = {"output_hidden_states": True, "output_attentions": attention == "eager"}
    output = model(input_ids=ids, z=z, **wanted)
    one = model(input_ids=ids[:1], z=z[0], **wanted)
    assert type(output) is type(one)
    assert list(output) == list(one)
    _close(output.pooler_output[:1], one.pooler_output)
    for name in ("hidden_states", *(["attentions"] if attention == "eager" else [])):
        assert len(output[name]) == len(one[name])
        for found, expected in zip(output[name], one[name], strict=True):
            assert found.shape[0] == B
            _close(found[:1], expected)

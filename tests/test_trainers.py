"""The loops of other libraries train a model as any other module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import accelerate
import datasets
import ignite.engine
import ignite.metrics
import lightning
import transformers

import hyperlight as hl

SPACE = {"g": hl.Uniform(0.0, 1.0)}
ROWS, BATCH = 64, 8


class Regression(nn.Module):
    """Gives its outputs, and their loss if there are labels, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        y = self.layers(x)
        return (
            {"logits": y} if labels is None else {"loss": (y - labels).square().mean(), "logits": y}
        )


def built() -> hl.HyperModel:
    torch.manual_seed(0)
    return hl.hypernetize(Regression(), SPACE)


def rows(per_sample: bool = True) -> dict[str, Tensor]:
    """``y = (1 - 2 g) * sum(x)``; ``g`` differs between samples, or is the same for all."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 3, generator=generator)
    g = torch.rand(ROWS, generator=generator) if per_sample else torch.full((ROWS,), 0.2)
    return {"x": x, "g": g, "labels": (1 - 2 * g[:, None]) * x.sum(1, keepdim=True)}


def batches(epochs: int = 1) -> Iterator[dict[str, Tensor]]:
    for _ in range(epochs):
        for start in range(0, ROWS, BATCH):
            batch = {name: value[start : start + BATCH] for name, value in rows(False).items()}
            yield batch | {"g": batch["g"][0]}


def loss_of(model: hl.HyperModel) -> float:
    """With the one gamma that :func:`batches` holds."""
    with torch.no_grad():
        held = rows(per_sample=False)
        return float((model(held["x"], g=0.2)["logits"] - held["labels"]).square().mean())


# --- the Trainer of transformers --------------------------------------------------------


def one_gamma(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Collate, and let the batch share the gamma of its first row."""
    batch = transformers.default_data_collator(features)
    return batch | {"g": batch["g"][0]}


def mean_square(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return (outputs["logits"] - labels).square().mean()


def trainer(model: nn.Module, folder: Path, steps: int, **settings: Any) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_steps=10,
        logging_steps=1000,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    held = rows(per_sample=settings.get("data_collator") is None)
    data = datasets.Dataset.from_dict(
        {name: value.tolist() for name, value in held.items()} | {"note": ["unused"] * ROWS}
    )
    return transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data, **settings)


WAYS = {
    "one gamma, the loss of the model": {"data_collator": one_gamma},
    "one gamma, a loss of one's own": {
        "data_collator": one_gamma,
        "compute_loss_func": mean_square,
    },
    "gamma per sample, a loss of one's own": {"compute_loss_func": mean_square},
    "gamma per sample, the loss of the model": {},
}


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS.keys())
def test_the_trainer_of_transformers_trains_evaluates_and_resumes(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    first = trainer(built(), tmp_path, 20, **settings)
    before = first.evaluate()["eval_loss"]
    first.train()
    after = first.evaluate()["eval_loss"]
    assert after < 0.7 * before
    predicted = first.predict(first.eval_dataset)
    assert predicted.predictions.shape == (ROWS, 1)

    resumed = trainer(built(), tmp_path, 30, **settings)
    result = resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert result.global_step == 30
    straight = trainer(built(), tmp_path / "straight", 30, **settings)
    straight.train()
    for name, value in straight.model.state_dict().items():
        assert torch.allclose(resumed.model.state_dict()[name], value, atol=1e-6), name
    expected = pytest.approx(straight.evaluate()["eval_loss"], rel=1e-4)
    assert resumed.evaluate()["eval_loss"] == expected


def test_the_trainer_keeps_the_columns_that_the_model_takes(tmp_path: Path) -> None:
    batch = next(iter(trainer(built(), tmp_path, 1).get_train_dataloader()))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "x": (BATCH, 3),
        "g": (BATCH,),
        "labels": (BATCH, 1),
    }


# --- Lightning, accelerate, ignite ------------------------------------------------------


class Lit(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = built()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self.model(**batch)["loss"]

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.log("loss", self.model(**batch)["loss"], batch_size=BATCH)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return hl.optim.Adam(hl.parameter_groups(self.model, lr=1e-2))


def fit(folder: Path, steps: int, resume: str | None = None) -> tuple[lightning.Trainer, Lit]:
    loop = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        gradient_clip_val=1.0,
    )
    lit = Lit()
    data = DataLoader(list(batches()), batch_size=None)
    loop.fit(lit, data, data, ckpt_path=resume)
    return loop, lit


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_lightning_trains_validates_and_resumes(tmp_path: Path) -> None:
    before = loss_of(built())
    loop, lit = fit(tmp_path, 16)
    assert loss_of(lit.model) < 0.7 * before
    assert loop.callback_metrics["loss"] == pytest.approx(loss_of(lit.model), rel=1e-3)
    loop.save_checkpoint(tmp_path / "half.ckpt")
    resumed, other = fit(tmp_path, 32, str(tmp_path / "half.ckpt"))
    assert resumed.global_step == 32
    _, straight = fit(tmp_path, 32)
    for name, value in straight.state_dict().items():
        assert torch.allclose(other.state_dict()[name], value, atol=1e-6), name


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate_trains_and_unwraps(precision: str, accumulate: int) -> None:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # one for a process
    accelerator = accelerate.Accelerator(
        cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate
    )
    model = built()
    before = loss_of(model)
    optimizer = hl.optim.Adam(model.parameters(), lr=1e-2)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    for batch in batches(epochs=3):
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(**batch)["loss"])
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert plain is model
    assert loss_of(plain) < 0.7 * before
    assert "_original_forward" not in vars(plain)


def test_ignite_trains_and_evaluates() -> None:
    model = built()
    before = loss_of(model)
    optimizer = hl.optim.AdamW(model.parameters(), lr=1e-2)

    def step(engine: Any, batch: dict[str, Tensor]) -> float:
        model.train()
        optimizer.zero_grad()
        loss = model(**batch)["loss"]
        loss.backward()
        optimizer.step()
        return loss.item()

    loop = ignite.engine.Engine(step)
    loop.run(list(batches()), max_epochs=3)
    assert loop.state.iteration == 3 * ROWS // BATCH
    assert loss_of(model) < 0.7 * before
    evaluator = ignite.engine.create_supervised_evaluator(
        model,
        metrics={"loss": ignite.metrics.MeanSquaredError()},
        prepare_batch=lambda batch, device, non_blocking: (batch, batch["labels"]),
        model_fn=lambda model, batch: model(batch["x"], g=batch["g"])["logits"],
    )
    evaluator.run(list(batches()))
    assert evaluator.state.metrics["loss"] == pytest.approx(loss_of(model), rel=1e-3)

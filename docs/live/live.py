"""Build a page on which two families of networks run live in the browser.

``make docs`` makes it part of the site. ``python docs/live/live.py`` alone trains the families,
exports them by ``hl.export_onnx`` and writes the page where the site has it. onnxruntime-web comes
from npm, and is compared with a checksum.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hyperlight as hl
from hyperlight.lab.data import digits
from hyperlight.lab.primaries import VAE, UNet
from hyperlight.lab.registration import total_variation, warp
from hyperlight.lab.tasks.vae import distortion, objective, rate

# `npm view onnxruntime-web@VERSION dist.integrity` says it, too.
VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = Path(__file__).with_name("index.html")
SITE = Path(__file__).parents[2] / "build" / "site" / "docs" / "live"
LATENT = 16


class Family(NamedTuple):
    """A trained model, and the examples of its primary's arguments that the page shows.

    Attributes:
        name: of its files, and in ``index.html``.
        model: the model, in eval mode.
        examples: tensors ``(N, ...)`` by the names of the arguments.
    """

    name: str
    model: hl.HyperModel
    examples: Mapping[str, Tensor]


class Registration(nn.Module):
    """Warp moving images onto fixed ones, both ``(B, 1, H, W)``.

    It returns the ``warped`` images, and the displacement ``field``, ``(B, 2, H, W)``, in pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(inputs=2, outputs=2, levels=2, channels=12)
        self.unet.head.weight.data *= 0.01  # hardly any displacement at first

    def forward(self, moving: Tensor, fixed: Tensor) -> dict[str, Tensor]:
        field = self.unet(torch.cat([moving, fixed], dim=1))
        return {"warped": warp(moving, field), "field": field}


def fit(model: hl.HyperModel, steps: int, loss: Callable[[], Tensor]) -> hl.HyperModel:
    optimizer = hl.optim.Adam(hl.parameter_groups(model, lr=3e-3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def enlarged(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2.0, mode="bilinear")


def most_apart(images: Tensor) -> Tensor:
    """The two images that differ most."""
    rows = images.flatten(1)
    first, second = divmod(int(torch.cdist(rows, rows).argmax()), len(rows))
    return images[[first, second]]


def registration(steps: int = 600) -> Family:
    """Train registration for every smoothness: digits are warped onto others of the same kind."""
    torch.manual_seed(0)
    data = digits()
    images, labels = enlarged(data.train.images), data.train.labels
    model = hl.hypernetize(Registration(), {"smoothness": hl.Uniform(0.0, 1.0)})

    def loss() -> Tensor:
        first, smoothness = torch.randint(len(images), (16,)), model.sample()["smoothness"]
        second = (labels[first, None] == labels).float().multinomial(1)[:, 0]
        found = model(images[first], images[second], smoothness=smoothness)
        error = (found["warped"] - images[second]).square().mean()
        return (1 - smoothness) * 20 * error + smoothness * total_variation(found["field"])

    fit(model, steps, loss)
    pairs = [most_apart(data.test.images[data.test.labels == digit][:10]) for digit in (1, 2, 4, 9)]
    moving, fixed = (enlarged(images) for images in torch.stack(pairs, dim=1))
    return Family("registration", model, {"moving": moving, "fixed": fixed})


def autoencoder(steps: int = 1200) -> Family:
    """Train a VAE for every price of the rate, beta."""
    torch.manual_seed(0)
    data = digits()
    images, shown = data.train.images, data.test.images[:8]
    primary = VAE(images.shape[1:], widths=(128,), latent=LATENT)
    model = hl.hypernetize(primary, {"beta": hl.LogUniform(0.01, 10.0, endpoints=0.1)})

    def loss() -> Tensor:
        x, beta = images[torch.randint(len(images), (64,))], model.sample(64)["beta"]
        decoded, mean, log_variance = model(x, torch.randn(64, LATENT), beta=beta)
        return objective(distortion(decoded, x), rate(mean, log_variance), beta).mean()

    fit(model, steps, loss)
    return Family("autoencoder", model, {"x": shown, "noise": torch.zeros(len(shown), LATENT)})


def unpacked(archive: bytes, checksum: str) -> dict[str, bytes]:
    """The files of onnxruntime-web that a page needs, if the package is the one that is meant.

    Raises:
        ValueError: the checksum is another.
    """
    found = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != checksum:
        raise ValueError(
            f"The package onnxruntime-web {VERSION} that npm gave has the sha512 {found}; expected "
            f"{checksum}, of the package that this page was tested with. Do not serve it."
        )
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = {name: tar.extractfile(f"package/dist/{name}") for name in RUNTIME}
        return {name: member.read() for name, member in members.items() if member}


def runtime() -> dict[str, bytes]:
    """Fetch onnxruntime-web from npm.

    Raises:
        OSError: npm is not installed, or cannot fetch it.
        ValueError: the checksum is another.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is needed to fetch onnxruntime-web; install Node.js, which brings it.")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--pack-destination", folder]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(folder).glob("*.tgz"))
        if run.returncode or len(archives) != 1:
            raise OSError(f"{' '.join(command[1:3])} failed: {run.stderr.strip()[-500:]}")
        return unpacked(archives[0].read_bytes(), SHA512)


def build(folder: Path, families: Iterable[Family], files: Mapping[str, bytes]) -> None:
    """Write the page, the families with their examples, and what runs them."""
    folder.mkdir(parents=True, exist_ok=True)
    for family in families:
        hl.export_onnx(family.model, folder / f"{family.name}.onnx", **family.examples)
        examples = {
            name: {"shape": [*tensor.shape], "values": tensor.flatten().tolist()}
            for name, tensor in family.examples.items()
        }
        (folder / f"{family.name}.json").write_text(json.dumps(examples), "utf-8")
    (folder / "index.html").write_bytes(PAGE.read_bytes())
    for name, content in files.items():
        (folder / name).write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a page on which families run live.")
    parser.add_argument("folder", type=Path, nargs="?", default=SITE, help="where to write it")
    folder = parser.parse_args().folder
    files = runtime()  # first, as it is what may fail
    build(folder, [registration(), autoencoder()], files)
    print(f"python -m http.server --directory {folder}")


if __name__ == "__main__":
    main()

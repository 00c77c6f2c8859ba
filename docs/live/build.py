"""Build a page on which a family of networks runs live in the browser.

``python docs/live/build.py FOLDER`` trains beta-VAEs of the digits in scikit-learn, exports them by
``hl.export_onnx`` and writes a page with a slider. onnxruntime-web comes from npm, and is compared
with a checksum. Look at it with ``python -m http.server --directory FOLDER``.
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
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

import hyperlight as hl
from hyperlight.lab.data import digits
from hyperlight.lab.primaries import VAE
from hyperlight.lab.tasks.vae import distortion, objective, rate

# `npm view onnxruntime-web@VERSION dist.integrity` says it, too.
VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = Path(__file__).with_name("index.html")
SHOWN = 8  # digits on the page
LATENT = 16


def family(steps: int = 1200) -> tuple[hl.HyperModel, Tensor]:
    """Train a VAE for every price of the rate, beta; with the digits that it has not seen."""
    torch.manual_seed(0)
    data = digits()
    images = data.train.images
    primary = VAE(images.shape[1:], widths=(128,), latent=LATENT)
    beta = hl.LogUniform(0.01, 10.0, endpoints=0.1)
    model = hl.hypernetize(primary, {"beta": beta})
    optimizer = hl.optim.Adam(hl.parameter_groups(model, lr=3e-3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, drawn = images[torch.randint(len(images), (64,))], model.sample(64)["beta"]
        given, mean, log_variance = model(x, torch.randn(64, LATENT), beta=drawn)
        loss = objective(distortion(given, x), rate(mean, log_variance), drawn).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval(), data.test.images


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


def build(folder: Path, model: hl.HyperModel, images: Tensor, files: Mapping[str, bytes]) -> None:
    """Write the page, the family, some images ``(N, 1, H, W)`` and what runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    hl.export_onnx(model, folder / "family.onnx", images, torch.zeros(len(images), LATENT))
    (folder / "digits.json").write_text(json.dumps(images.flatten(1).tolist()), "utf-8")
    (folder / "index.html").write_bytes(PAGE.read_bytes())
    for name, content in files.items():
        (folder / name).write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a page on which a family runs live.")
    parser.add_argument("folder", type=Path, help="where to write the page")
    parser.add_argument("--steps", type=int, default=1200, help="steps of training")
    options = parser.parse_args()
    files = runtime()  # first, as it is what may fail
    model, images = family(options.steps)
    build(options.folder, model, images[:SHOWN], files)
    print(f"python -m http.server --directory {options.folder}")


if __name__ == "__main__":
    main()

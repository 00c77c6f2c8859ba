"""All readers by name, and what was found before."""

from __future__ import annotations

from tests.fuzz.data import DATA
from tests.fuzz.found import FOUND
from tests.fuzz.models import MODELS
from tests.fuzz.reader import Reader
from tests.fuzz.runs import RUNS

__all__ = ["FOUND", "READERS"]

READERS: dict[str, Reader] = {reader.name: reader for reader in (*MODELS, *RUNS, *DATA)}

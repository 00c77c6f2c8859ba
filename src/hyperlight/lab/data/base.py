"""What a data set offers to the tasks, and how a task asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import LabError
from .images import ImageSplit
from .scans import ScanSplit

__all__ = ["DataSet", "Request"]


@dataclass(frozen=True)
class Request:
    """How a task wants its data.

    Attributes:
        folder: with the files; by default the user's cache.
        size: height and width; by default those of the data set.
        least: smallest side that the task can use, for data sets that are resized by default.
        grey: read the user's images as grey ones.
        augment: train on random crops, flips and colours, if the data set has them.
        use_valid: train on the official validation part as well.
    """

    folder: Path | None = None
    size: tuple[int, int] | None = None
    least: int = 1
    grey: bool = False
    augment: bool = True
    use_valid: bool = False

    def side(self, default: int) -> int:
        """Height and width of square images.

        Raises:
            LabError: height and width differ.
        """
        if self.size is None:
            return default
        if self.size[0] != self.size[1]:
            raise LabError(
                f"--size was {self.size}; these images are square. Give one height and width."
            )
        return self.size[0]

    def own_folder(self, what: str) -> Path:
        """The folder of the user's own data.

        Raises:
            LabError: no folder was given.
        """
        if self.folder is None:
            raise LabError(f"--data folder needs --data-dir, the folder with your {what}.")
        return self.folder


@dataclass(frozen=True)
class DataSet:
    """A data set, as ``--data NAME`` selects it.

    Attributes:
        name: for the command line.
        images: loads labelled images; None if there are none.
        scans: loads scans with label maps; None if there are none.
        fetch: downloads the files to a folder, or checks those that it holds, and returns a line
            about them; None if there is nothing to download. ``hyperlight data NAME`` calls it
            and shows the first paragraph of its docstring.
    """

    name: str
    images: Callable[[Request], ImageSplit] | None = None
    scans: Callable[[Request], ScanSplit] | None = None
    fetch: Callable[[Path | None], str] | None = None

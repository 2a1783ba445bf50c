"""Iteration over the image files of a folder, for programs that predict or measure."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from loading.photographs import find_images, read_batches, unique_names
from utils import UserError, evenly_spaced, log

Read = tuple[Path, tuple[Tensor, ...]]  # an image file and the tensors read from it


class ImageFiles:
    """An image file, or the images of a folder.

    Files that cannot be read are logged and added to `failed`. Raises UserError if there are
    no images.
    """

    def __init__(self, path: str | Path | None) -> None:
        if path is None:
            raise UserError("`img_path` names an image, or a folder of images")
        self.paths, skipped = find_images(path)
        self.failed: list[Path] = []
        for text in skipped:
            log.error("skipped: %s", text)

    def keep(self, count: int | None) -> None:
        """Keep at most `count` of the images, evenly spaced."""
        self.paths = evenly_spaced(self.paths, count)

    def result_names(self, folder: Path, endings: list[str]) -> dict[Path, str]:
        """Return a unique name for each image's results: {image: name}.

        No result file {name}{ending} in `folder` is one of the input images.
        """
        inputs = {path.resolve() for path in self.paths}

        def taken(name: str) -> bool:
            return any((folder / f"{name}{ending}").resolve() in inputs for ending in endings)

        return dict(zip(self.paths, unique_names(self.paths, taken), strict=True))

    def batches(
        self,
        read: Callable[[Path], tuple[Tensor, ...]],
        batch_size: int,
        title: str,
        quiet: bool = False,
        paths: Sequence[Path] | None = None,
    ) -> Iterator[list[Read]]:
        """Read the images with `read`, in order, in batches, and show a progress bar.

        `paths` are some of the images (default: all).
        """
        paths = self.paths if paths is None else paths
        total = len(paths)
        bar = tqdm(total=total, desc=title, unit="image", disable=quiet or total == 1 or None)

        def report(path: Path, sentence: str) -> None:
            self.failed.append(path)
            bar.update()
            log.error("failed: %s", sentence)

        with bar:
            for batch in read_batches(paths, read, batch_size, report):
                yield batch
                bar.update(len(batch))

    def summary(self, folder: Path) -> int:
        """Log the numbers of images. Returns the exit status: 1 if some could not be read, 2 if
        none could.
        """
        log.info(
            "%s of %s images → %s", len(self.paths) - len(self.failed), len(self.paths), folder
        )
        if self.failed:
            log.error("%s could not be read", len(self.failed))
        return 2 if len(self.failed) == len(self.paths) else 1 if self.failed else 0

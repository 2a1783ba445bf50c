"""The images of a folder in batches: what the programs that predict and measure loop over."""

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from loading.photographs import find_images, read_batches, unique_names
from utils import evenly_spaced, log

Read = tuple[Path, tuple[Tensor, ...]]  # an image file and what was made of it


class ImageFiles:
    """An image, or the images of a folder. What cannot be read is logged and collected in `failed`.

    Raises UserError where there is nothing to look at.
    """

    def __init__(self, path: str | Path) -> None:
        self.paths, skipped = find_images(path)
        self.failed: list[Path] = []
        for text in skipped:
            log.error("skipped: %s", text)

    def keep(self, count: int | None) -> None:
        """Keep at most `count` of the images, evenly spaced."""
        self.paths = evenly_spaced(self.paths, count)

    def result_names(self, folder: Path, endings: list[str]) -> dict[Path, str]:
        """A name for each image's results, {image: name}, such that {name}{ending} in `folder`
        is no other image's result and none of the images."""
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
    ) -> Iterator[list[Read]]:
        """What `read` makes of the images, in order, in batches; behind a progress bar."""
        total = len(self.paths)
        bar = tqdm(total=total, desc=title, unit="image", disable=quiet or total == 1 or None)

        def report(path: Path, sentence: str) -> None:
            self.failed.append(path)
            bar.update()
            log.error("failed: %s", sentence)

        with bar:
            for batch in read_batches(self.paths, read, batch_size, report):
                yield batch
                bar.update(len(batch))

    def summary(self, folder: Path) -> int:
        """Log how many were done; the exit status: 1 where some could not be read."""
        log.info(
            "%s of %s images → %s", len(self.paths) - len(self.failed), len(self.paths), folder
        )
        if self.failed:
            log.error("%s could not be read", len(self.failed))
        return 1 if self.failed else 0

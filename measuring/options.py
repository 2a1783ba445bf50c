"""Options that the measuring programs share."""

from dataclasses import dataclass, fields

from loading.layouts import add_layouts
from loading.view_index import choose_index_dir
from utils import UserError


@dataclass(frozen=True)
class LabelledOptions:
    """Labelled views.

    Args:
        data_dirs: folders with labelled data, or lists of views (docs/data.md),
            comma-separated (default: data/ of the job's base folder, else the embedded rooms).
        layouts: Python files of your own that add layouts of folders (docs/extending.md).
        index_dir: folder in which the views of large data folders are listed, for later runs
            (docs/scale.md; default: xtconsistency in the user's cache folder), or none.
        split: a split file, whose test buildings are measured.
        buildings: the buildings to measure, comma-separated (default: the published almena and
            albertville if they are in the data, else the test buildings).
        allow_missing: go on where more than a tenth of the views lack a domain.
    """

    data_dirs: list | None = None
    layouts: list | None = None
    index_dir: str | None = None
    split: str | None = None
    buildings: list | None = None
    allow_missing: bool = False

    def prepare(self) -> None:
        """Add the layouts, and choose where indexes of views are kept, before data are read."""
        add_layouts(self.layouts)
        choose_index_dir(self.index_dir)


def check_unused(what: str, labelled: LabelledOptions, **others: object) -> None:
    """Raise UserError if an option of labelled views is given to `what`, which measures images.

    `others` are further options, {name: value}, that count as given if they are true.
    """
    given = [f.name for f in fields(labelled) if getattr(labelled, f.name) != f.default]
    given += [name for name, value in others.items() if value]
    if given:
        names = ", ".join(f"`{name}`" for name in given)
        raise UserError(f"{what} measures images without labels: no {names}")


@dataclass(frozen=True)
class GivenOptions:
    """Your own networks.

    Args:
        checkpoint: networks from rgb to normals, depth or reshading to measure in place of
            others, comma-separated: checkpoint files or runs' folders, as for demo.py.
        network: FILE.py:FUNCTION, for checkpoints that were trained with `train --network`.
    """

    checkpoint: list | None = None
    network: str | None = None


@dataclass(frozen=True)
class NetworkOptions:
    """Networks.

    Args:
        models_dir: the folder of the checkpoints (default: models/ of the job's base folder,
            then the shipped rooms networks).
        image_size: pixels of the images' side (default: what the checkpoints record).
        width: channels of the networks' first level (default: what the checkpoints record).
        levels: halvings of the image in the deepest networks (default: what the checkpoints
            record).
        precision: fp32, tf32, bf16 or fp16.
        batch_size: images at a time; results do not depend on it (default: 16, but 2 where
            pictures are drawn on a CPU).
        quiet: no progress bar.
    """

    models_dir: str | None = None
    image_size: int | None = None
    width: int | None = None
    levels: int | None = None
    precision: str = "fp32"
    batch_size: int | None = None
    quiet: bool = False

    @property
    def scale(self) -> tuple[int | None, int | None, int | None]:
        """The requested scale: (image_size, width, levels)."""
        return self.image_size, self.width, self.levels

"""Networks of other publishers: Omnidata's U-Net for normals, and Taskonomy's own networks.

They are recognised by the names of their files, which `python -m scripts.download` keeps. All map
images in [0, 1] to predictions in this project's encoding. docs/weights.md has the details.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from loading.addresses import OMNIDATA_FILE, TASKONOMY
from models import fill_network, read_weights
from modules import InUnitRange, TaskonomyNetwork, UNet
from task_configs import get_task
from transfers import FULL_LEVELS, FULL_WIDTH, Edge, Scale
from utils import UserError

OMNIDATA_SIZE = 384  # pixels: the size at which its publisher shows it
TASKONOMY_SIZE = 256
# {publisher: the domains that the demo shows}. Taskonomy's depth has no known unit.
PUBLISHERS = {"omnidata": ("normal",), "taskonomy": ("normal", "reshading")}


class Published(NamedTuple):
    """What a checkpoint's file name says: the publisher, and the domain that is predicted."""

    publisher: str
    domain: str


def recognised(path: str | Path) -> Published | None:
    """Return whose network a file is, or None if its name is not another publisher's."""
    name = Path(path).name
    if name.startswith(Path(OMNIDATA_FILE).stem):
        return Published("omnidata", "normal")
    part = re.fullmatch(r"(\w+)_(encoder|decoder)(-[0-9a-f]{64})?\.pth", name)
    for domain, files in TASKONOMY.items():
        if part and part[1] == files.encoder.partition("_encoder-")[0]:
            return Published("taskonomy", domain)
    return None


def is_publisher(name: str | Path) -> bool:
    """Whether this is a publisher's name rather than a file or folder."""
    return str(name) in PUBLISHERS and not Path(name).exists()


def find_published(publisher: str, domain: str, folders: Iterable[str | Path]) -> Path | None:
    """Return the network's file (Taskonomy's: the encoder) in the first folder that has it."""
    if domain not in PUBLISHERS[publisher]:
        return None
    names = [OMNIDATA_FILE] if publisher == "omnidata" else TASKONOMY[domain][:2]
    for folder in map(Path, folders):
        if all((folder / name).is_file() for name in names):
            return folder / names[0]
    return None


def published_file(publisher: str, domain: str, folders: Sequence[str | Path]) -> Path:
    """Return the network's file as `find_published` does. Raises UserError if there is none."""
    if domain not in PUBLISHERS[publisher]:
        known = " and ".join(PUBLISHERS[publisher])
        raise UserError(f"{publisher} stands for networks rgb → {known}, not rgb → {domain}")
    path = find_published(publisher, domain, folders)
    if path is None:
        places = " or ".join(dict.fromkeys(map(str, folders)))
        raise UserError(
            f"no network of {publisher} in {places}: `python -m scripts.download {publisher}` "
            f"fetches it"
        )
    return path


def load_published(path: str | Path) -> tuple[nn.Module, Scale]:
    """Build a recognised network and load its weights. Returns it and the scale of its images.

    It maps (B, 3, H, W) in [0, 1] to (B, C, H, W): Omnidata's to values from 0 on, Taskonomy's to
    [0, 1]. Raises UserError if the file is not recognised, or does not hold such a network.
    """
    found = recognised(path)
    if found is None:
        raise UserError(f"{path}: its name is not that of a network of Omnidata or Taskonomy")
    if found.publisher == "omnidata":
        return _omnidata(Path(path))
    return _taskonomy(Path(path), found.domain), Scale(TASKONOMY_SIZE)


def _omnidata(path: Path) -> tuple[nn.Module, Scale]:
    weights, _ = read_weights(path)
    scale = scale_of(weights)
    network = UNet(scale.levels, 3, 3, scale.width)
    fill_network(network, path, weights)
    return network, scale


def scale_of(weights: dict[str, Tensor]) -> Scale:
    """Return the scale of a U-Net from the shapes of its weights. Omnidata records none.

    For the weights of another network, this is the published scale, which they then do not fit.
    """
    first = weights.get("down1.conv1.weight")
    width = first.shape[0] if first is not None and first.dim() else 0
    names = [n for n in weights if re.fullmatch(r"down_blocks\.\d+\.conv1\.weight", n)]
    try:
        return Scale(OMNIDATA_SIZE, width, len(names) or -1)  # 0 would stand for a default
    except UserError:
        return Scale(OMNIDATA_SIZE, FULL_WIDTH, FULL_LEVELS)


def _taskonomy(path: Path, domain: str) -> nn.Module:
    channels = TASKONOMY[domain].channels
    network = TaskonomyNetwork(channels)
    for part, file in zip(("encoder", "decoder"), _both_parts(path, domain), strict=True):
        fill_network(getattr(network, part), file, read_weights(file)[0])
    shown = get_task(domain).channels if domain in PUBLISHERS["taskonomy"] else channels
    return InUnitRange(network, shown)


def _both_parts(path: Path, domain: str) -> list[Path]:
    """Return the encoder's and the decoder's file. One of them is `path`."""
    name = TASKONOMY[domain].encoder.partition("_encoder-")[0]
    given = "encoder" if f"{name}_encoder" in path.name else "decoder"
    other = "decoder" if given == "encoder" else "encoder"
    published = path.parent / getattr(TASKONOMY[domain], other)
    beside = (
        [published] if published.is_file() else sorted(path.parent.glob(f"{name}_{other}*.pth"))
    )
    if len(beside) != 1:
        raise UserError(
            f"{path} needs one {name}_{other}-….pth beside it, and there are {len(beside)}: "
            f"`python -m scripts.download taskonomy` fetches both"
        )
    return [path, *beside] if given == "encoder" else [*beside, path]


def initial_weights(init: str, edge: Edge, scale: Scale, folders: Sequence[str | Path]) -> Path:
    """Return the file that training starts from: `init` itself, or that of the publisher's name.

    Raises UserError if it is another publisher's network and does not fit the network rgb →
    target of this run.
    """
    name = is_publisher(init)
    found = Published(init, "normal") if name else recognised(init)
    if found is None:
        return Path(init)
    if found.publisher == "taskonomy":
        raise UserError(
            f"`init` {init} is a network of Taskonomy, which is not a U-Net: the demo shows it, "
            f"but training cannot start from it"
        )
    if edge != ("rgb", "normal"):
        raise UserError(f"`init` {init} is a network rgb → normal, and this run trains "
                        f"{' → '.join(edge)}")  # fmt: skip
    path = published_file("omnidata", "normal", folders) if name else Path(init)
    own = scale_of(read_weights(path)[0])
    if not own.fits(scale):
        raise UserError(
            f"`init` {init} has `width` {own.width} and `levels` {own.levels}, and this run has "
            f"{scale}: all networks of a run have one scale, so give a `models_dir` with others "
            f"of that scale"
        )
    return path

"""Where publishers offer weights and data. An address is not checked before it is used."""

import re
from typing import NamedTuple

# ---- the consistency networks and the sample data, as archives ------------------------

_SHARES = "https://drive.switch.ch/index.php/s"
ARCHIVES = {
    "models": f"{_SHARES}/QPvImzbbdjBKI5P/download",
    "percep_models": f"{_SHARES}/aXu4EFaznqtNzsE/download",
    "energy_graph_edges": f"{_SHARES}/aZDOEBixS4W7mBL/download",
    "data": f"{_SHARES}/0Fqr6t6cZsI0cp9/download",
}
SAMPLE_BUILDINGS = "almena", "albertville"
SAMPLE_DOMAINS = "rgb", "normal", "principal_curvature"

# ---- networks of other publishers, as single files ------------------------------------

OMNIDATA_FILE = "omnidata_unet_normal_v1.pth"
_OMNIDATA = "https://zenodo.org/records/10447888/files"
_TASKONOMY = "https://github.com/alexsax/visual-prior/raw/networks/assets/pytorch"


class TaskonomyFiles(NamedTuple):
    """The files of one of Taskonomy's networks. Each name ends with the file's own SHA-256."""

    encoder: str
    decoder: str
    channels: int


def _taskonomy(name: str, encoder: str, decoder: str, channels: int = 1) -> TaskonomyFiles:
    return TaskonomyFiles(
        f"{name}_encoder-{encoder}.pth", f"{name}_decoder-{decoder}.pth", channels
    )


# {domain: files}
TASKONOMY = {
    "normal": _taskonomy(
        "normal",
        "f5e2c7737e4948e3b2a822f584892c342eaabbe66661576ba50db7cdd40561c5",
        "8f18bfb30ee733039f05ed4a65b4db6f7cc1f8a4b9adb4806838e2bf88e020ec",
        channels=3,
    ),
    "depth_zbuffer": _taskonomy(
        "depth_zbuffer",
        "cc343a8ed622fd7ee3ce54398be8682bbbbfb5d11fa80e8d03a56a5ae4e11b09",
        "4833f06833899a8d81b29c6d7eda8adf69b394a91a8c0389b0d58db523097de9",
    ),
    "reshading": _taskonomy(
        "reshading",
        "de456246e171dc8407fb2951539aa60d75925ae0f1dbb43f110b7768398b36a6",
        "5bda58f921a3065992ab0034aa0ed787af97f26ac9e5668746dae49c299606cb",
    ),
    "principal_curvature": _taskonomy(
        "curvature",
        "3767cf5d06d9c6bca859631eb5a3c368d66abeb15542171b94188ffbe47d7571",
        "b93aed18d7510ad9502755f05c1ef569c00d1fc9c4620333a764ad0d6d131fd3",
        channels=2,
    ),
    "edge_occlusion": _taskonomy(
        "edge_occlusion",
        "5ac3f3e918131f61e01fe95e49f462ae2fc56aa463f8d353ca84cd4e248b9c08",
        "1b74d29a2b5afd9eb1a2cf2179289a31e2757909135615d5ba0a9164eb22505f",
    ),
    "keypoints2d": _taskonomy(
        "keypoints2d",
        "6b77695acff4c84091c484a7b128a1e28a7e9c36243eda278598f582cf667fe0",
        "0157a2a18c4e1f861c725d8d4cf3701b02e9444f47e22bdd1262c879dd2d0839",
    ),
    "keypoints3d": _taskonomy(
        "keypoints3d",
        "7e3f1ec97b82ae30030b7ea4fec2dc606b71497d8c0335d05f0be3dc909d000d",
        "724ea6f255cbe4c487a984230242ec7c3557fa8234bde2487d69eacc7b9b75af",
    ),
}

# {file: address}
FILES = {OMNIDATA_FILE: f"{_OMNIDATA}/{OMNIDATA_FILE}?download=1"} | {
    name: f"{_TASKONOMY}/{name}" for files in TASKONOMY.values() for name in files[:2]
}


def digest_in(name: str) -> str:
    """Return the SHA-256 that a file's name ends with, or "" if it has none."""
    found = re.fullmatch(r".+-([0-9a-f]{64})\.pth", name)
    return found[1] if found else ""

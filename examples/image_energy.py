"""Sort images by how far their predictions can be trusted, without labels.

python examples/image_energy.py FOLDER

Prints the consistency energy of each image of a folder (or of one image), the highest first: 0 is
the mean of rooms like those that the networks were trained on, and 1 a mean absolute deviation.
With --to, it also writes a grey picture of the energy of each image's pixels.
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import functional as TF

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's folder

from consistency import Energy  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="Sort images by their consistency energy.")
    parser.add_argument("place", type=Path, help="an image, or a folder of PNG and JPEG files")
    parser.add_argument("--to", type=Path, help="a folder for pictures of the energy")
    options = parser.parse_args()
    files = [options.place]
    if options.place.is_dir():
        files = sorted(f for f in options.place.iterdir() if f.suffix in (".png", ".jpg", ".jpeg"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    energy = Energy().to(device)

    found = {}
    for file in files:
        image = TF.to_tensor(Image.open(file).convert("RGB"))[None].to(device)
        with torch.inference_mode():
            found[file] = float(energy(image))
            if options.to:
                options.to.mkdir(parents=True, exist_ok=True)
                pixels = energy.pixels(image)[0].cpu()
                grey = (pixels - pixels.min()) / (pixels.max() - pixels.min() + 1e-9)
                TF.to_pil_image(grey).save(options.to / f"{file.stem}_energy.png")

    for file, value in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{value:+8.3f}  {file.name}")


if __name__ == "__main__":
    main()

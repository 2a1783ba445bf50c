"""Train the networks that a configuration needs and a models folder lacks.

python -m scripts.train_edges multiperceptual_normal
"""

import time

from tqdm import tqdm

import train
from energy import energy_configs, get_config
from graph import edges_of
from scripts.setting import settle
from transfers import TRANSFERS, Transfer, get_transfer, transfer_by_name
from utils import UserError, command_line, nearest, read_job


def main(
    config: str | None = None,
    *,
    again: bool = False,
    max_epochs: int | None = None,
    steps_per_epoch: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    dataaug: bool = False,
    data_dirs: list | None = None,
    split: str | None = None,
    models_dir: str | None = None,
    image_size: int | None = None,
    width: int | None = None,
    levels: int | None = None,
    results_dir: str | None = None,
    seed: int = 0,
) -> None:
    """Train the networks that a configuration needs and the models folder lacks.

    Networks between domains first, then those from rgb, each on its ground truth alone
    (python -m train TRANSFER). What is there already is left as it is, so an interrupted
    run goes on where it stopped.

    Example: python -m scripts.train_edges multiperceptual_normal

    Args:
        config: an energy configuration, a transfer (normal2reshading), or all: every row.
        again: train what is there already as well.
        max_epochs: epochs of each network (default: as python -m train).
        steps_per_epoch: steps of an epoch.
        batch_size: views a step.
        lr: learning rate.
        dataaug: the published augmentation.
        data_dirs: folders with data, comma-separated.
        split: a split file.
        models_dir: where networks are looked for and saved (default: models/ of the job's
            base folder; the shipped networks count as there).
        image_size: pixels of the images' side.
        width: channels of the networks' first level.
        levels: halvings of the image in the deepest networks (see python -m train --help).
        results_dir: where each network's run folder is made.
        seed: of each training.
    """
    needed = [row for row in _needed(config) if row.trainable]
    needed.sort(key=lambda row: row.source == "rgb")
    setting = settle(read_job(), data_dirs, models_dir, image_size, width, levels, new_models=True)
    missing = [row for row in needed if again or setting.find(row.checkpoint) is None]
    print(f"{len(needed)} networks needed, {len(needed) - len(missing)} there, "
          f"{len(missing)} to train")  # fmt: skip
    start = time.monotonic()
    for row in tqdm(missing, desc="networks", unit="network", disable=None):
        tqdm.write(f"\n==== {row.name} → {setting.models_dirs[0] / row.checkpoint}")
        train.main(
            row.name,
            max_epochs=max_epochs,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            lr=lr,
            dataaug=dataaug,
            data_dirs=data_dirs,
            split=split,
            models_dir=models_dir,
            image_size=setting.scale.image_size,
            width=setting.scale.width,
            levels=setting.scale.levels,
            results_dir=results_dir,
            seed=seed,
            quiet=True,
        )
    print(f"trained {len(missing)} networks in {time.monotonic() - start:.0f} s")


def _needed(name: str | None) -> list[Transfer]:
    """The transfers of a configuration, in order of first use; of `all`, every row."""
    if name == "all":
        return list(TRANSFERS.values())
    row = transfer_by_name(name or "")
    if row:
        return [row]
    if name not in energy_configs:
        known = [*energy_configs, "all"]
        there = f"there are: {', '.join(known)}, and the transfers"
        if name is None:
            raise UserError(f"which networks? Those of a configuration ({there})")
        raise UserError(f"no configuration or transfer {name!r}{nearest(name, known)} ({there})")
    return [get_transfer(*edge) for edge in edges_of(get_config(name)["paths"])]


if __name__ == "__main__":
    command_line(main)

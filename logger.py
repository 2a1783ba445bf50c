"""Where a run's numbers and pictures go: console and JSONL always, Visdom beside them."""

import json
import logging
import queue
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from utils import write_atomically


class Logger:
    """Running means of named values, one line and one JSON record at each `step`.

    Values are numbers or tensors; a tensor stays on its device until `step` reads it, so
    logging never waits for the GPU in between. A feature's running mean starts anew with
    its first value after a `step`; until then the old mean is shown again.
    """

    def __init__(
        self, name: str, path: str | Path | None = None, windows: "VisdomWindows | None" = None
    ) -> None:
        self.name = name
        self.windows = windows
        self.means: dict[str, float] = {}
        self._running: dict[str, list[Tensor]] = defaultdict(list)
        self._file = open(path, "a", buffering=1) if path else None
        self._started = time.monotonic()

    def update(self, feature: str, value: float | Tensor) -> None:
        """Take in a value (a tensor counts by its mean)."""
        value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
        self._running[feature].append(value.detach().float().mean())

    def step(self, at: int = 0, split: str = "train") -> str:
        """Take the means of what came since the last call, record them, return the line.

        `at` is the training step, the abscissa of the curves in Visdom.
        """
        fresh = {name: float(torch.stack(v).mean()) for name, v in self._running.items()}
        self._running.clear()
        self.means |= fresh
        seconds = time.monotonic() - self._started
        self._started = time.monotonic()
        self.record({"split": split, "step": at, **fresh})
        if self.windows:
            for feature, mean in fresh.items():
                self.windows.point(feature, split, at, mean)
        shown = "".join(f"{name}: {_short(mean)}, " for name, mean in self.means.items())
        return f"({self.name}) {shown} ... {seconds:.2f} sec"

    def record(self, values: Mapping) -> None:
        """Append one line to the JSONL file."""
        if self._file:
            self._file.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")

    def text(self, name: str, line: str) -> None:
        """Record a line of text, and add it to Visdom's window of that name."""
        self.record({name: line})
        if self.windows:
            self.windows.text(name, line)

    def picture(self, name: str, picture: Image.Image, path: str | Path) -> None:
        """Save a picture as PNG, and show it in Visdom's window of that name."""
        write_atomically(path, lambda temporary: picture.save(temporary, format="png"))
        self.record({"picture": str(path)})
        if self.windows:
            self.windows.picture(name, picture)

    def close(self) -> None:
        """Write out what is left; waits for Visdom a few seconds at most."""
        if self.windows:
            self.windows.close()
        if self._file:
            self._file.close()


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() else f"{value:.4f}"


# ---- Visdom -------------------------------------------------------------------------


def connect_visdom(env: str, server: str, port: int) -> "VisdomWindows | None":
    """The windows of a Visdom server, or None (one line says so) where none answers."""
    try:
        socket.create_connection((server, port), timeout=1).close()
    except (OSError, UnicodeError):  # the latter for what can be no host's name
        print(f"visdom: no server at {server}:{port}; logging to console, JSONL and PNG alone")
        return None
    print(f"visdom: http://{server}:{port}/env/{env}")
    return VisdomWindows(env, server, port)


class VisdomWindows:
    """Curves, texts and pictures in a Visdom environment, sent by a thread of its own.

    Nothing here waits for the server: what does not fit into the queue is dropped.
    """

    def __init__(self, env: str, server: str = "localhost", port: int = 8097) -> None:
        self.env, self.server, self.port = env, server, port
        self._queue: queue.Queue = queue.Queue(maxsize=10_000)
        self._lines: dict[str, list[str]] = defaultdict(list)
        self._drawn: set[str] = set()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def point(self, feature: str, split: str, at: int, value: float) -> None:
        """One more point of the line "{split}_{feature}" in the window of the feature."""
        line, first = f"{split}_{feature}", feature not in self._drawn
        self._drawn.add(feature)
        options = {"title": feature, "xlabel": "step", "ylabel": "loss", "showlegend": True}
        if first:
            how: dict = {"opts": options | {"legend": [line]}}
        else:
            how = {"opts": options, "name": line, "update": "append"}
        self._send("line", {"X": np.array([at]), "Y": np.array([value]), "win": feature, **how})

    def text(self, name: str, line: str) -> None:
        self._lines[name].append(line)
        how = {"win": name, "opts": {"title": name}}
        self._send("text", {"text": "<br>".join(self._lines[name]), **how})

    def picture(self, name: str, picture: Image.Image) -> None:
        pixels = np.array(picture).transpose(2, 0, 1)
        self._send("image", {"img": pixels, "win": name, "opts": {"title": name}})

    def close(self) -> None:
        self._send("save", {"envs": [self.env]})
        try:
            self._queue.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(timeout=10)

    def _send(self, call: str, arguments: dict) -> None:
        try:
            self._queue.put_nowait((call, arguments))
        except queue.Full:
            pass

    def _serve(self) -> None:
        from visdom import Visdom  # takes a second: not for runs without a server

        logging.getLogger("visdom").setLevel(logging.CRITICAL)
        visdom, lost = None, False
        while (item := self._queue.get()) is not None:
            call, arguments = item
            try:
                visdom = visdom or Visdom(
                    server=f"http://{self.server}",
                    port=self.port,
                    env=self.env,
                    use_incoming_socket=False,
                    raise_exceptions=True,
                )
                getattr(visdom, call)(**arguments)
                lost = False
            except (OSError, ImportError, ValueError, TypeError, AssertionError) as error:
                if not lost:
                    print(f"visdom: {self.server}:{self.port} does not answer ({error})")
                lost = True


# ---- pictures -----------------------------------------------------------------------

PADDING = 2  # black pixels between cells, as published


def montage(columns: Mapping[str, Tensor], cell: int = 256) -> Image.Image:
    """A picture of labelled columns, one row a sample.

    Each column is (B, C, H, W) in [0, 1] (clamped); one channel is shown as grey. Cells
    are resized to `cell` pixels on the shorter side.
    """
    cells = [_cells(values, cell) for values in columns.values()]
    rows = max(len(column) for column in cells)
    height, width = cells[0].shape[-2:]
    header = max(18, cell // 10)
    picture = Image.new(
        "RGB",
        (len(cells) * (width + PADDING) + PADDING, header + rows * (height + PADDING) + PADDING),
    )
    draw = ImageDraw.Draw(picture)
    for x, (name, column) in enumerate(zip(columns, cells, strict=True)):
        left = PADDING + x * (width + PADDING)
        font = _font(name, width, header)
        draw.text((left + width / 2, header / 2), name, fill="white", font=font, anchor="mm")
        for y, values in enumerate(column):
            image = Image.fromarray(values.mul(255).byte().permute(1, 2, 0).numpy())
            picture.paste(image, (left, header + PADDING + y * (height + PADDING)))
    return picture


def _cells(values: Tensor, cell: int) -> Tensor:
    values = values.detach().float().cpu().clamp(0, 1)[:, :3]
    if values.shape[1] != 3:
        values = values[:, :1].expand(-1, 3, -1, -1)
    height, width = values.shape[-2:]
    factor = cell / min(height, width)
    size = (round(height * factor), round(width * factor))
    return F.interpolate(values, size=size, mode="nearest" if factor >= 1 else "area")


def _font(text: str, width: int, height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font, from what Pillow brings, in which the text fits."""
    for size in range(int(height * 0.7), 6, -1):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width:
            break
    return font


def in_order(paths: Sequence[str], error_after: str = "n(x)") -> list[str]:
    """The columns of a plot: its paths, and the error map right after the prediction."""
    columns = []
    for path in paths:
        columns += [path, "error"] if path == error_after else [path]
    return columns

"""Logging of a run's numbers and pictures: to the console, a JSONL file and Visdom."""

import base64
import html
import json
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pictures import write_png
from utils import UserError, log

if TYPE_CHECKING:
    from visdom import Visdom


class Logger:
    """Means of named values. Each `step` returns them as a line and writes a JSON record.

    Values are numbers or tensors. Tensors stay on their device until `step`, so `update` never
    waits for the GPU. If a feature got no value since the last `step`, its previous mean is
    shown again.

    `path` is the JSONL file; an existing file is appended to. `windows` show its content in
    Visdom and need a `path`.
    """

    def __init__(
        self, name: str, path: str | Path | None = None, windows: "VisdomWindows | None" = None
    ) -> None:
        self.name = name
        self.windows = windows
        self.means: dict[str, float] = {}
        self._running: dict[str, list[Tensor]] = defaultdict(list)
        self._path = Path(path) if path else None
        self._file = _open_to_append(self._path) if self._path else None
        self._started = time.monotonic()
        if self.windows:
            if self._path is None:
                raise ValueError("Visdom's windows are drawn from the log's file: give its path")
            self.windows.follow(self._path)

    def update(self, feature: str, value: float | Tensor) -> None:
        """Add a value of a feature. Of a tensor, the mean is used."""
        value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
        self._running[feature].append(value.detach().float().mean())

    def step(self, at: int = 0, split: str = "train") -> str:
        """Average and record the values since the last call, and return the line to print.

        `at` is the training step: the x coordinate of the curves in Visdom.
        """
        new_means = {name: _mean(values) for name, values in self._running.items()}
        self._running.clear()
        self.means |= new_means
        seconds = time.monotonic() - self._started
        self._started = time.monotonic()
        self.record({"split": split, "step": at, **new_means})
        text = "".join(f"{name}: {_short(mean)}, " for name, mean in self.means.items())
        return f"({self.name}) {text} ... {seconds:.2f} sec"

    def record(self, values: Mapping) -> None:
        """Append one record to the JSONL file.

        Visdom shows the values of a record with "split" and "step" as points of curves, and a
        "picture" as an image. Any other string is added as a line to the window of its name.
        """
        if self._file:
            line = json.dumps({"time": round(time.time(), 3), **values}) + "\n"
            try:
                self._file.write(line)
            except OSError as error:
                self._give_up()
                raise UserError(f"cannot write {self._path}: {error.strerror}") from None
        if self.windows:
            self.windows.notice()

    def text(self, name: str, line: str) -> None:
        """Record a line of text, which is appended to the Visdom window of that name."""
        self.record({name: line})

    def picture(self, name: str, picture: Image.Image, path: str | Path) -> None:
        """Save a picture as PNG and show it in the Visdom window of that name."""
        path = Path(path)
        write_png(picture, path)
        same_folder = self._path is not None and path.parent == self._path.parent
        self.record({"picture": path.name if same_folder else str(path), "window": name})

    def state_dict(self) -> dict:
        """Return the state with which a resumed run logs as if it had not been interrupted.

        It holds the means, the values since the last `step`, and the file's length in bytes.
        The file is flushed to disk up to that length.
        """
        length = None
        if self._file:
            os.fsync(self._file.fileno())
            length = os.fstat(self._file.fileno()).st_size
        running = {name: torch.stack(values).cpu() for name, values in self._running.items()}
        return {"means": dict(self.means), "running": running, "length": length}

    def load_state_dict(self, state: Mapping) -> None:
        """Restore a `state_dict()`, and truncate the file to its length at that time.

        Raises UserError, and changes nothing, if the file is shorter than that.
        """
        if self._file and state["length"] is not None:
            length = os.fstat(self._file.fileno()).st_size
            if length < state["length"]:
                raise UserError(
                    f"{self._path} has {length} bytes and had {state['length']} when the "
                    f"checkpoint was made: it is not that run's log, or its end is lost"
                )
            self._file.truncate(state["length"])
            if self.windows:
                self.windows.redraw()
        self.means = dict(state["means"])
        self._running.clear()
        for name, values in state["running"].items():
            self._running[name] = list(values)

    def _give_up(self) -> None:
        """Close the file after a write error, so that the unwritten data are not tried again."""
        file, self._file = self._file, None
        if file:
            with suppress(OSError):
                file.close()

    def close(self) -> None:
        """Close the file. Waits at most `PATIENCE` seconds for Visdom to show the rest of it."""
        if self._file:
            self._file.close()
        if self.windows:
            self.windows.close()


def _open_to_append(path: Path):
    """Open the file line-buffered, and remove an incomplete last line left by a killed run."""
    try:
        if path.exists():
            with open(path, "rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        return open(path, "a", buffering=1)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _mean(values: list[Tensor]) -> float:
    """Return the mean. Values restored from a state are on the CPU, later ones on the device."""
    device = values[-1].device
    return float(torch.stack([value.to(device) for value in values]).mean())


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() else f"{value:.4f}"


# ---- Visdom -------------------------------------------------------------------------

PAUSE = 1.0  # seconds between two reads of the log file
RETRY = 3.0  # seconds between two attempts to connect to the server
PATIENCE = 10.0  # timeout in seconds of one request, and of the last drawing in `close`


class VisdomWindows:
    """Shows a JSONL log in a Visdom environment as curves, texts and pictures.

    A separate thread reads the file and talks to the server, so the run never waits for
    Visdom. The server may be started later or restarted: whenever a connection is made, all
    windows are drawn from the beginning of the log. Only the given host is contacted.
    """

    def __init__(self, env: str, server: str = "localhost", port: int = 8097) -> None:
        if not 0 < port < 2**16:
            raise UserError(f"`visdom_port` is a number from 1 to 65535, not {port}")
        self.env, self.server, self.port = env, server, port
        self._path = Path()
        self._client: Visdom | None = None
        self._present: bool | None = None  # whether there is a server, as last logged
        self._news, self._cut = threading.Event(), threading.Event()
        self._tried, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._forget()

    def follow(self, path: Path) -> None:
        """Start to show the log at `path`. Logs whether there is a server."""
        self._path = path
        self._thread.start()
        self._tried.wait(timeout=1)  # only to log this line before those of the run

    def notice(self) -> None:
        """Tell the thread that the log has grown."""
        self._news.set()

    def redraw(self) -> None:
        """Draw all windows again, after the log was truncated."""
        self._cut.set()
        self._news.set()

    def close(self) -> None:
        """Show the rest of the log and save the environment on the server."""
        self._closing.set()
        self._news.set()
        self._thread.join(timeout=PATIENCE)

    # The following methods run in the thread.

    def _serve(self) -> None:
        logging.getLogger("visdom").setLevel(logging.CRITICAL)
        last = False
        while not last:
            last = self._closing.is_set()
            try:
                self._draw(last)
            except (OSError, HTTPException, UnicodeError) as error:
                if self._client:  # the connection broke: try once more, the server may be back
                    last = False
                else:
                    self._say(False, str(error))
                    self._closing.wait(RETRY)
                self._forget()
                continue
            if not last:
                self._news.wait()
                self._news.clear()
                self._closing.wait(PAUSE)

    def _say(self, present: bool, reason: str = "") -> None:
        """Log one line when the server is found, lost or back."""
        place = f"{self.server}:{self.port}"
        if present and not self._present:
            again = " is back, all windows drawn again" if self._present is False else ""
            log.info("visdom: http://%s/env/%s%s", place, self.env, again)
        if not present and self._present is not False:
            was = "no server" if self._present is None else "no more answers"
            log.info(
                "visdom: %s at %s (%s); when one answers, it will show all", was, place, reason
            )
        self._present = present
        self._tried.set()

    def _forget(self) -> None:
        """Reset the state to that of an empty environment."""
        self._client = None
        self._read = 0  # number of bytes of the log read so far
        self._curves: set[str] = set()
        self._texts: dict[str, list[str]] = defaultdict(list)

    def _draw(self, last: bool) -> None:
        """Draw what was added to the log. Raises OSError or HTTPException if the server fails."""
        client = self._client or _connect(self.env, self.server, self.port)
        if self._cut.is_set():
            self._forget()
            self._cut.clear()
        curves, texts, pictures = self._unread()
        for (feature, line), points in curves.items():
            self._curve(client, feature, line, points)
        for name in texts:
            lines = "<br>".join(map(html.escape, self._texts[name]))
            client.text(lines, win=name, opts={"title": name})
        for name, path in pictures.items():
            _show(client, name, path)
        if last:
            client.save([self.env])
        self._client = client
        self._say(True)

    def _unread(self) -> tuple[dict, set[str], dict[str, Path]]:
        """Read what was added to the log.

        Returns curves {(feature, line): points}, names of changed texts, and {name: picture}.
        """
        with open(self._path, "rb") as file:
            file.seek(self._read)
            unread = file.read()
        complete_lines = unread[: unread.rfind(b"\n") + 1]
        self._read += len(complete_lines)
        curves, texts, pictures = defaultdict(list), set(), {}
        for record in map(json.loads, complete_lines.splitlines()):
            del record["time"]
            if "split" in record:
                split, at = record.pop("split"), record.pop("step")
                for feature, value in record.items():
                    curves[feature, f"{split}_{feature}"].append((at, value))
            elif "picture" in record:
                pictures[record["window"]] = self._path.parent / record["picture"]
            else:
                for name, line in record.items():
                    if isinstance(line, str):
                        texts.add(name)
                        self._texts[name].append(line)
        return curves, texts, pictures

    def _curve(self, client: "Visdom", feature: str, line: str, points: list) -> None:
        """Add points to a line in the window of its feature."""
        x, y = np.array(points, dtype=float).T
        y[~np.isfinite(y)] = np.nan  # browsers cannot parse infinity in JSON
        client.line(
            Y=y, X=x, win=feature, name=line,
            update="append" if feature in self._curves else None,
            opts={"title": feature, "xlabel": "step", "ylabel": feature.split(" : ")[0],
                  "showlegend": True},
        )  # fmt: skip
        self._curves.add(feature)


def _connect(env: str, server: str, port: int) -> "Visdom":
    """Return a client that uses a single connection.

    It raises OSError or HTTPException if the server is gone or no longer has a window, or if
    the package `visdom` is not installed.
    """
    connection = HTTPConnection(server, port, timeout=PATIENCE)
    connection.connect()
    try:
        from visdom import Visdom  # slow to import (about 1 s), so only if there is a server
    except ImportError:
        raise HTTPException("the package visdom is not installed") from None

    class Client(Visdom):
        def _handle_post(self, url: str, data: str | None = None) -> str:
            connection.auto_open = 0  # never reconnect: a restarted server has lost its windows
            connection.request("POST", quote(urlsplit(url).path), body=data or "{}")
            response = connection.getresponse()
            text = response.read().decode()
            if response.status != 200:
                raise HTTPException(f"it answers {response.status} {response.reason}")
            if response.will_close:
                connection.connect()
            return text

        def win_exists(self, win: str, env: str | None = None) -> bool:
            if self._send({"win": win, "eid": env}, "win_exists") != "true":
                raise HTTPException(f"window {win} is gone")
            return True

    return Client(f"http://{server}", port=port, env=env, use_incoming_socket=False)


def _show(client: "Visdom", name: str, path: Path) -> None:
    """Show a PNG file in the window of that name. A missing file is ignored."""
    if not path.is_file():
        return
    with Image.open(path, formats=("PNG",)) as picture:
        width, height = picture.size
    encoded = base64.b64encode(path.read_bytes()).decode()
    content = {"src": f"data:image/png;base64,{encoded}", "caption": None}
    options = {"title": name, "width": width, "height": height}
    client._send({"data": [{"content": content, "type": "image"}], "win": name, "opts": options})

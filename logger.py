"""Where a run's numbers and pictures go: console and JSONL always, Visdom beside them."""

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
    """Running means of named values, one line and one JSON record at each `step`.

    Values are numbers or tensors; a tensor stays on its device until `step` reads it, so
    logging never waits for the GPU in between. A feature's running mean starts anew with
    its first value after a `step`; until then the old mean is shown again.

    A file that is there already is continued. `windows` show what the file holds.
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
        """Take in a value (a tensor counts by its mean)."""
        value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
        self._running[feature].append(value.detach().float().mean())

    def step(self, at: int = 0, split: str = "train") -> str:
        """Take the means of what came since the last call, record them, return the line.

        `at` is the training step, the abscissa of the curves in Visdom.
        """
        fresh = {name: _mean(values) for name, values in self._running.items()}
        self._running.clear()
        self.means |= fresh
        seconds = time.monotonic() - self._started
        self._started = time.monotonic()
        self.record({"split": split, "step": at, **fresh})
        shown = "".join(f"{name}: {_short(mean)}, " for name, mean in self.means.items())
        return f"({self.name}) {shown} ... {seconds:.2f} sec"

    def record(self, values: Mapping) -> None:
        """Append one line to the JSONL file.

        In Visdom, the values of a record with "split" and "step" are points of curves, a
        "picture" is shown, and any other text is a line in the window of its name.
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
        """Record a line of text, to be added to Visdom's window of that name."""
        self.record({name: line})

    def picture(self, name: str, picture: Image.Image, path: str | Path) -> None:
        """Save a picture as PNG, to be shown in Visdom's window of that name."""
        path = Path(path)
        write_png(picture, path)
        beside = self._path is not None and path.parent == self._path.parent
        self.record({"picture": path.name if beside else str(path), "window": name})

    def state_dict(self) -> dict:
        """What a checkpoint has to hold for a resumed run to log as if it had gone on.

        The means, the values since the last `step`, and the file's length in bytes; the
        file's content up to there is on the disk when this returns.
        """
        length = None
        if self._file:
            os.fsync(self._file.fileno())
            length = os.fstat(self._file.fileno()).st_size
        running = {name: torch.stack(values).cpu() for name, values in self._running.items()}
        return {"means": dict(self.means), "running": running, "length": length}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from `state_dict()`: what the file holds beyond it is cut off.

        Raises UserError, and changes nothing, where the file is shorter than it was then.
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
        """Close the file without what could not be written, so that nothing tries again."""
        file, self._file = self._file, None
        if file:
            with suppress(OSError):
                file.close()

    def close(self) -> None:
        """Close the file; waits a few seconds at most for Visdom to show the rest of it."""
        if self._file:
            self._file.close()
        if self.windows:
            self.windows.close()


def _open_to_append(path: Path):
    """The file, line-buffered, without what a killed run left of its last line."""
    try:
        if path.exists():
            with open(path, "rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        return open(path, "a", buffering=1)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _mean(values: list[Tensor]) -> float:
    """Values of a resumed run come from the CPU, those after them from the device."""
    device = values[-1].device
    return float(torch.stack([value.to(device) for value in values]).mean())


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() else f"{value:.4f}"


# ---- Visdom -------------------------------------------------------------------------

PAUSE = 1.0  # seconds between two looks at the log
RETRY = 3.0  # seconds between two tries to reach a server that is not there
PATIENCE = 10.0  # seconds for one answer, and for the last windows at the end of a run


class VisdomWindows:
    """Curves, texts and pictures in a Visdom environment, drawn from the log's file.

    A thread of its own reads the file and talks to the server, so nothing in a run waits
    for either. While there is no server the log grows, and when one answers (for the first
    time, or again) all windows are drawn from the log's beginning. It talks to the host
    named and to no other.
    """

    def __init__(self, env: str, server: str = "localhost", port: int = 8097) -> None:
        if not 0 < port < 2**16:
            raise UserError(f"`visdom_port` is a number from 1 to 65535, not {port}")
        self.env, self.server, self.port = env, server, port
        self._path = Path()
        self._client: Visdom | None = None
        self._present: bool | None = None  # as last logged
        self._news, self._cut = threading.Event(), threading.Event()
        self._tried, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._forget()

    def follow(self, path: Path) -> None:
        """Show what the log at `path` holds and will hold. Logs whether a server is there."""
        self._path = path
        self._thread.start()
        self._tried.wait(timeout=1)  # for the order of the lines that are logged alone

    def notice(self) -> None:
        """The log has grown."""
        self._news.set()

    def redraw(self) -> None:
        """The log was cut: draw all windows anew."""
        self._cut.set()
        self._news.set()

    def close(self) -> None:
        """Show the rest of the log, and have the server save the environment."""
        self._closing.set()
        self._news.set()
        self._thread.join(timeout=PATIENCE)

    # what follows runs in the thread

    def _serve(self) -> None:
        logging.getLogger("visdom").setLevel(logging.CRITICAL)
        last = False
        while not last:
            last = self._closing.is_set()
            try:
                self._draw(last)
            except (OSError, HTTPException, UnicodeError) as error:
                if self._client:  # it was there: a new one may be
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
        """One line when the server is there, lost or back."""
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
        """Nothing is drawn."""
        self._client = None
        self._read = 0  # bytes of the log
        self._curves: set[str] = set()
        self._texts: dict[str, list[str]] = defaultdict(list)

    def _draw(self, last: bool) -> None:
        """Draw what is new in the log. OSError or HTTPException where the server fails."""
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
        """(feature, line) → points, the names of texts, name → picture: in the log since."""
        with open(self._path, "rb") as file:
            file.seek(self._read)
            unread = file.read()
        whole = unread[: unread.rfind(b"\n") + 1]
        self._read += len(whole)
        curves, texts, pictures = defaultdict(list), set(), {}
        for record in map(json.loads, whole.splitlines()):
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
        """More points of a line, in the window of its feature."""
        x, y = np.array(points, dtype=float).T
        y[~np.isfinite(y)] = np.nan  # browsers read no infinity
        client.line(
            Y=y, X=x, win=feature, name=line,
            update="append" if feature in self._curves else None,
            opts={"title": feature, "xlabel": "step", "ylabel": feature.split(" : ")[0],
                  "showlegend": True},
        )  # fmt: skip
        self._curves.add(feature)


def _connect(env: str, server: str, port: int) -> "Visdom":
    """A client on one connection. Where the server went or forgot a window, it raises."""
    connection = HTTPConnection(server, port, timeout=PATIENCE)
    connection.connect()
    from visdom import Visdom  # takes a second: not for runs without a server

    class Client(Visdom):
        def _handle_post(self, url: str, data: str | None = None) -> str:
            connection.auto_open = 0  # a new connection may be to a server that knows nothing
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
    """The PNG file as it is, in the window of that name; nothing where it is gone."""
    if not path.is_file():
        return
    with Image.open(path) as picture:
        width, height = picture.size
    encoded = base64.b64encode(path.read_bytes()).decode()
    content = {"src": f"data:image/png;base64,{encoded}", "caption": None}
    options = {"title": name, "width": width, "height": height}
    client._send({"data": [{"content": content, "type": "image"}], "win": name, "opts": options})

import base64
import json
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from PIL import Image

from logger import Logger, VisdomWindows
from utils import UserError


def test_running_means_lines_and_records(tmp_path):
    logger = Logger("train", tmp_path / "log.jsonl")
    for value in (1.0, 2.0, torch.tensor([1.0, 3.0])):
        logger.update("loss", value)
    logger.update("epoch", 0)
    line = logger.step(at=3)
    assert line.startswith("(train) loss: 1.6667, epoch: 0,  ... ")
    logger.update("loss", 0.5)
    assert logger.step(at=4, split="val").startswith("(train) loss: 0.5000, epoch: 0,  ... ")
    logger.close()
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["split"], first["step"], round(first["loss"], 4)) == ("train", 3, 1.6667)
    assert (second["split"], second["loss"], "epoch" in second) == ("val", 0.5, False)


def test_a_mean_that_is_no_number_is_shown():
    logger = Logger("train")
    logger.update("loss", float("nan"))
    logger.update("other", float("inf"))
    assert "loss: nan, other: inf" in logger.step()


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path):
    def run(path, values, state=None):
        logger = Logger("train", path)
        if state:
            logger.load_state_dict(state)
        lines = []
        for at, value in values:
            logger.update("loss", torch.tensor(value))
            logger.update("other", value * 3)
            if at % 2 == 0:
                logger.update("rare", at)
            if at % 3 == 0:
                lines.append(logger.step(at).rsplit("...")[0])
                logger.text("chosen", f"at {at}")
        return logger, lines

    def read(path):
        return [json.loads(line) | {"time": 0} for line in path.read_text().splitlines()]

    values = [(at, 1 / (at + 1)) for at in range(20)]
    whole, lines = run(tmp_path / "whole.jsonl", values)
    first, _ = run(tmp_path / "log.jsonl", values[:8])  # between two steps
    torch.save(first.state_dict(), tmp_path / "state.pth")
    run(tmp_path / "log.jsonl", values[8:15])  # goes on, and is killed at half a line
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"split": "tra')
    state = torch.load(tmp_path / "state.pth", weights_only=True)
    resumed, rest = run(tmp_path / "log.jsonl", values[8:], state)
    assert rest == lines[-len(rest) :] and len(rest) == 4
    assert read(tmp_path / "log.jsonl") == read(tmp_path / "whole.jsonl")
    assert resumed.means == whole.means


def test_half_a_line_is_cut_off_and_a_foreign_log_is_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    first = Logger("train", path)
    first.text("name", "a line that is longer than the next")
    state = first.state_dict()
    path.write_text('{"time": 1, "name": "kept"}\n{"time": 2, "na')
    logger = Logger("train", path)
    with pytest.raises(UserError, match="log.jsonl has 28 bytes and had"):
        logger.load_state_dict(state)
    logger.text("name", "next")
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["kept", "next"]


# ---- Visdom -------------------------------------------------------------------------


class Server:
    """The real Visdom server, in a process of its own, without the files of its pages."""

    def __init__(self, folder):
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process = None

    def start(self):
        code = (
            "import sys; sys.modules['torch'] = None; "  # it can do without, and starts sooner
            "from visdom.server.run_server import start_server; "
            f"start_server({self.port}, base_url='', env_path={str(self.folder)!r}, "
            "bind_local=True)"
        )
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, "-c", code], **silent)
        until(lambda: self.post("env/env", {}) is not None)

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def post(self, endpoint, values):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{endpoint}", json.dumps(values).encode()
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return None

    def windows(self, env="env"):
        """Window → {line: [(x, y), …]}, text, or picture."""
        found = json.loads(self.post("win_data", {"eid": env, "win": None}) or "null") or {}
        shown = {}
        for name, window in found.items():
            assert window["title"] == name
            content = window["content"]
            if window["type"] == "plot":
                axes = content["layout"]
                assert axes["xaxis"]["title"] == "step" and axes["showlegend"]
                assert name.startswith(axes["yaxis"]["title"]) and axes["yaxis"]["title"]
                content = {
                    line["name"]: list(zip(line["x"], line["y"], strict=True))
                    for line in content["data"]
                }
            shown[name] = content["src"] if window["type"] == "image" else content
        return shown


def until(holds):
    """Wait for it, a minute at most."""
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("logger.RETRY", 0.05)
    monkeypatch.setattr("logger.PAUSE", 0.01)


@pytest.fixture
def server(tmp_path, quick):
    """A server that does not run yet."""
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server that runs, for tests with an environment each."""
    server = Server(tmp_path_factory.mktemp("visdom"))
    server.start()
    yield server
    server.kill()


def log(logger, steps):
    for at in steps:
        for split in ("train", "val"):
            logger.update("mae : n(x) -> y^", at / 2)
            logger.step(at, split)
        logger.text("chosen losses", f"epoch {at}: a<b")


def everything(count):
    """What `windows` has to give after `log` of so many steps."""
    points = [(at, at / 2) for at in range(count)]
    name = "mae : n(x) -> y^"
    return {
        name: {f"train_{name}": points, f"val_{name}": points},
        "chosen losses": "<br>".join(f"epoch {at}: a&lt;b" for at in range(count)),
    }


def test_a_server_without_the_package_is_said_and_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "visdom", None)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        Logger("x", tmp_path / "log.jsonl", VisdomWindows("env", "127.0.0.1", port)).close()
    assert "(the package visdom is not installed)" in capsys.readouterr().out


def test_windows_are_whole_after_a_server_came_late_was_killed_and_came_back(
    server, tmp_path, capsys
):
    logger = Logger("x", tmp_path / "log.jsonl", VisdomWindows("env", "127.0.0.1", server.port))
    log(logger, range(3))
    place = f"127.0.0.1:{server.port}"
    assert capsys.readouterr().out.startswith(f"visdom: no server at {place} (")
    server.start()  # late
    until(lambda: server.windows() == everything(3))
    log(logger, range(3, 5))
    until(lambda: server.windows() == everything(5))
    server.kill()
    log(logger, range(5, 8))
    until(lambda: "no more answers" in capsys.readouterr().out)
    server.start()  # with nothing in it
    until(lambda: server.windows() == everything(8))
    server.kill()  # and there again before anything is sent
    server.start()
    log(logger, range(8, 9))
    picture = Image.new("RGB", (20, 10), "red")
    logger.picture("start_plot", picture, tmp_path / "start.png")
    logger.picture("_plot", picture, tmp_path / "latest.png")
    logger.picture("_plot", Image.new("RGB", (20, 10)), tmp_path / "latest.png")
    logger.close()
    shown = server.windows()
    for name, file in (("start_plot", "start.png"), ("_plot", "latest.png")):
        encoded = base64.b64encode((tmp_path / file).read_bytes()).decode()
        assert shown.pop(name) == f"data:image/png;base64,{encoded}"
    assert shown == everything(9)
    server.kill()  # after the end: it has saved all
    server.start()
    assert everything(9).items() <= server.windows().items()
    out = capsys.readouterr().out.splitlines()
    assert out == [f"visdom: http://{place}/env/env is back, all windows drawn again"]


def test_a_resumed_run_shows_whole_curves_without_what_was_cut_off(running, quick, tmp_path):
    windows = [VisdomWindows("resumed", "127.0.0.1", running.port) for _ in range(2)]
    first = Logger("x", tmp_path / "log.jsonl", windows[0])
    log(first, range(3))
    state = first.state_dict()
    log(first, range(3, 6))
    first.close()
    assert running.windows("resumed") == everything(6)
    second = Logger("x", tmp_path / "log.jsonl", windows[1])
    second.load_state_dict(state)
    log(second, range(3, 4))
    second.close()
    assert running.windows("resumed") == everything(4)


def test_a_window_closed_in_the_browser_comes_back_whole(running, quick, tmp_path):
    logger = Logger("x", tmp_path / "log.jsonl", VisdomWindows("closed", "127.0.0.1", running.port))
    log(logger, range(3))
    until(lambda: running.windows("closed") == everything(3))
    running.post("close", {"eid": "closed", "win": "mae : n(x) -> y^"})
    log(logger, range(3, 5))
    logger.close()
    assert running.windows("closed") == everything(5)


def test_values_that_are_no_numbers_leave_gaps(running, quick, tmp_path):
    logger = Logger("x", tmp_path / "log.jsonl", VisdomWindows("gaps", "127.0.0.1", running.port))
    for at, value in enumerate((1.0, float("nan"), float("inf"), 2.0)):
        logger.update("loss", value)
        logger.step(at)
    logger.close()
    points = [(0, 1), (1, None), (2, None), (3, 2)]
    assert running.windows("gaps") == {"loss": {"train_loss": points}}


@pytest.mark.parametrize("name", ["localhost", "a..b"])
def test_no_server_is_one_line(name, server, tmp_path, capsys):
    windows = VisdomWindows("env", name, server.port)
    logger = Logger("x", tmp_path / "log.jsonl", windows)
    time.sleep(0.5)  # some ten tries
    logger.close()
    out = capsys.readouterr().out
    assert out.startswith(f"visdom: no server at {name}:{server.port} (") and out.count("\n") == 1


def test_an_impossible_port_is_one_sentence():
    with pytest.raises(UserError, match="`visdom_port` is a number from 1 to 65535, not 70000"):
        VisdomWindows("env", "localhost", 70000)


def test_a_server_that_never_answers_does_not_hold_up_a_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("logger.PATIENCE", 60)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, then says nothing
        windows = VisdomWindows("env", "127.0.0.1", silent.getsockname()[1])
        logger = Logger("train", tmp_path / "log.jsonl", windows)
        log(logger, range(200))
        # the server's first word is still awaited, and all is in the log
        assert capsys.readouterr().out == ""
        assert (tmp_path / "log.jsonl").read_text().count("\n") == 600
    logger.close()


def test_only_the_host_named_is_talked_to(running, quick, tmp_path, monkeypatch):
    connected = []
    connect = socket.create_connection
    monkeypatch.setattr(
        socket, "create_connection", lambda at, *rest, **how: connected.append(at) or connect(at)
    )
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    logger = Logger("x", tmp_path / "log.jsonl", VisdomWindows("host", "127.0.0.1", running.port))
    log(logger, range(3))
    logger.close()
    assert set(connected) == {("127.0.0.1", running.port)}
    monkeypatch.undo()
    assert running.windows("host") == everything(3)


# ---- pictures -----------------------------------------------------------------------

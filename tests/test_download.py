"""The download program against servers on this machine, good and bad ones."""

import hashlib
import http.server
import io
import os
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest
import torch

import loading.downloads as download
from loading.downloads import fetch
from models import read_weights
from scripts.download import SOURCES
from transfers import TRANSFERS
from utils import UserError

ROOT = Path(__file__).resolve().parents[1]


class Host(http.server.BaseHTTPRequestHandler):
    """Serves `files` in one of the ways hosts do; `asked` holds (path, Range) of each request."""

    def do_GET(self):
        server = self.server
        range_, name = self.headers.get("Range"), self.path.rpartition("/")[2]
        server.asked.append((name, range_))
        data = server.files.get(name)
        if "html" in server.ways:
            return self.answer(200, b"<html>welcome</html>", {"Content-Type": "text/html"})
        if data is None:
            return self.answer(404, b"<html>no</html>", {"Content-Type": "text/html"})
        start = int(range_.removeprefix("bytes=").removesuffix("-")) if range_ else 0
        if "no ranges" in server.ways or not range_:
            return self.answer(200, data)
        if start >= len(data):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        content_range = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.answer(206, data[start:], {"Content-Range": content_range})

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(body[:cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def host(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.files, server.asked, server.ways, server.cuts = {}, [], set(), []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}/files"
    monkeypatch.setenv("XTC_MIRROR", server.url)
    monkeypatch.setattr(download, "PAUSE", 0)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(5000.0)}, buffer)
    return buffer.getvalue()


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


# ---- one file -----------------------------------------------------------------------


@pytest.mark.parametrize("ways", [set(), {"no ranges"}], ids=["ranges", "no ranges"])
def test_what_is_cut_off_goes_on(host, tmp_path, ways):
    data = host.files["a.pth"] = checkpoint()
    host.ways, host.cuts = ways, [7000, 6000]
    fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)
    assert (tmp_path / "a.pth").read_bytes() == data
    assert not (tmp_path / "a.pth.part").exists()
    second = [None, "bytes=7000-", "bytes=13000-" if not ways else "bytes=6000-"]
    assert [range_ for _, range_ in host.asked] == second


def test_a_second_call_goes_on_after_the_first_gave_up(host, tmp_path, monkeypatch):
    data = host.files["a.pth"] = checkpoint()
    host.cuts = [5000, 0, 0]
    monkeypatch.setattr(download, "ATTEMPTS", 3)
    with pytest.raises(UserError, match="cut off after 5000 bytes.*the same again goes on"):
        fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)
    assert not (tmp_path / "a.pth").exists() and (tmp_path / "a.pth.part").stat().st_size == 5000
    fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)
    assert host.asked[-1] == ("a.pth", "bytes=5000-")
    assert (tmp_path / "a.pth").read_bytes() == data


def test_a_part_that_was_whole_is_not_fetched_again(host, tmp_path):
    data = host.files["a.pth"] = checkpoint()
    (tmp_path / "a.pth.part").write_bytes(data)
    fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)
    assert (tmp_path / "a.pth").read_bytes() == data
    (tmp_path / "a.pth.part").write_bytes(data + b"more")
    with pytest.raises(UserError, match="shorter than what is here"):
        fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)


@pytest.mark.parametrize(
    "content, ways, said",
    [(b"not weights", set(), "is not a checkpoint"), (None, set(), "no file"),
     (None, {"html"}, "gives a web page")],
)  # fmt: skip
def test_what_is_no_checkpoint_is_not_kept(host, tmp_path, content, ways, said):
    host.files, host.ways = ({"a.pth": content} if content else {}), ways
    with pytest.raises(UserError, match=said):
        fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)
    assert not list(tmp_path.iterdir())


def test_a_wrong_sum_is_refused(host, tmp_path):
    data = host.files["a.pth"] = checkpoint()
    with pytest.raises(UserError, match="its SHA-256 is"):
        fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights, "0" * 64)
    assert not list(tmp_path.iterdir())
    fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights, hashlib.sha256(data).hexdigest())


def test_files_of_a_folder_are_an_address_too(tmp_path):
    (tmp_path / "from.pth").write_bytes(checkpoint())
    fetch((tmp_path / "from.pth").as_uri(), tmp_path / "to.pth", read_weights)
    assert (tmp_path / "to.pth").read_bytes() == checkpoint()
    with pytest.raises(download.NotThere):
        fetch((tmp_path / "none.pth").as_uri(), tmp_path / "none.pth", read_weights)


# ---- the program --------------------------------------------------------------------


def test_what_is_there_is_left_and_what_lacks_is_named(host, tmp_path, run):
    names = SOURCES["energy_graph_edges"]()
    host.files = {name: checkpoint() for name in names[:-2]}
    sums = hashlib.sha256(checkpoint()).hexdigest()
    host.files["SHA256SUMS"] = "".join(f"{sums}  {name}\n" for name in names).encode()
    call = ["energy_graph_edges", str(tmp_path / "models")]
    status, output, _ = run(*call, program="scripts.download", defaults=False)
    assert status == 2 and output.splitlines()[-1].startswith("error: ")
    assert all(name in output.splitlines()[-1] for name in names[-2:])
    assert {p.name for p in (tmp_path / "models").iterdir()} == set(names[:-2])
    host.files |= {name: checkpoint() for name in names}
    host.asked.clear()
    status, output, _ = run(*call, program="scripts.download", defaults=False)
    assert status == 0 and output.count("there already") == len(names) - 2
    assert [name for name, _ in host.asked] == ["SHA256SUMS", *names[-2:]]


def test_data_are_unpacked_whole_or_not_at_all(host, tmp_path, run):
    host.files["almena_rgb.tar"] = archive(rgb__a_domain_rgb__png=b"1")
    host.files["almena_normal.tar"] = archive(almena_normal__normal__b=b"2")
    host.files["tolstoy_rgb.tar"] = archive(**{"..__evil": b"3"})
    call = ["data", str(tmp_path / "data"), "--quiet"]
    how = {"program": "scripts.download", "defaults": False}
    status, output, _ = run(*call, "--buildings=almena", **how)
    assert status == 0, output
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["data/almena_normal/normal/b", "data/almena_rgb/rgb/a_domain_rgb/png"]
    status, output, _ = run(*call, "--buildings=almena", **how)
    assert status == 0 and output.count("there already") == 2
    status, output, _ = run(*call, "--buildings=tolstoy", "--domains=rgb", **how)
    assert status == 2 and "refused" in output.splitlines()[-1]
    assert not (tmp_path / "evil").exists() and not (tmp_path / "data" / "tolstoy_rgb").exists()


@pytest.mark.parametrize(
    "mirror, words, said",
    [("", ["models"], "set XTC_MIRROR"), ("ftp://x", ["models"], "XTC_MIRROR begins with"),
     ("http://127.0.0.1:9", ["models"], "no answer from http://127.0.0.1:9"),
     ("x", ["modles"], "did you mean models"), ("x", [], "what to fetch"),
     ("x", ["models", "--domains=rgb"], "are for data"),
     ("http://127.0.0.1:9", ["data", "--buildings=../x"], "no building's name"),
     ("http://127.0.0.1:9", ["data", "--domains=rbg"], "no task 'rbg'")],
)  # fmt: skip
def test_what_cannot_be_fetched_is_one_sentence(run, monkeypatch, tmp_path, mirror, words, said):
    monkeypatch.setenv("XTC_MIRROR", mirror)
    monkeypatch.chdir(tmp_path)
    words = [*words[:1], str(tmp_path / "to"), *words[1:]] if words else []
    status, output, _ = run(*words, program="scripts.download", defaults=False)
    assert status == 2 and said in output.splitlines()[-1] and "Traceback" not in output


def test_each_kind_names_files_of_the_table():
    rows = {row.checkpoint for row in TRANSFERS.values()}
    for kind in ("models", "percep_models", "energy_graph_edges"):
        files = SOURCES[kind]()
        assert len(files) == len(set(files)) and set(files) <= set(SOURCES["models"]())
    assert {"normal2curvature.pth", "depth2normal.pth"} <= set(SOURCES["percep_models"]()) <= rows


@pytest.mark.parametrize("kind", SOURCES)
def test_the_shell_scripts_run_the_program(kind):
    script = ROOT / "tools" / f"download_{kind}.sh"
    assert os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text()
    assert f"-m scripts.download {kind} " in script.read_text()


def test_a_shell_script_without_a_mirror(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XTC_MIRROR"}
    command = [ROOT / "tools" / "download_percep_models.sh", tmp_path / "models"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("error: set XTC_MIRROR")
    assert not (tmp_path / "models").exists()

"""The download program against servers on this machine, good and bad ones."""

import gzip
import hashlib
import http.server
import io
import os
import random
import subprocess
import tarfile
import threading
import zipfile
from email.utils import formatdate
from pathlib import Path

import pytest
import torch

import loading.downloads as download
from loading import addresses
from loading.downloads import fetch, parse_sums
from models import read_weights
from scripts.download import SOURCES
from transfers import TRANSFERS
from utils import UserError

ROOT = Path(__file__).resolve().parents[1]


class Host(http.server.BaseHTTPRequestHandler):
    """Serves `files` in one of the ways hosts do; `asked` holds (path, Range) of each request.

    The ways: with ETag and date unless "no ETag", "weak ETag" or "no date"; "no ranges";
    "no If-Range": ranges whatever has changed.
    """

    def do_GET(self):
        server = self.server
        range_, name = self.headers.get("Range"), self.path.partition("?")[0].rpartition("/")[2]
        server.asked.append((name, range_))
        data = server.files.get(name)
        if "html" in server.ways:
            return self.answer(200, b"<html>welcome</html>", {"Content-Type": "text/html"})
        if data is None:
            return self.answer(404, b"<html>no</html>", {"Content-Type": "text/html"})
        digest = hashlib.sha256(data).hexdigest()
        tag = {"no ETag": None, "weak ETag": f'W/"{digest}"'}
        version = {
            "ETag": next((tag[way] for way in tag if way in server.ways), f'"{digest}"'),
            "Last-Modified": formatdate(int(digest[:7], 16), usegmt=True),
        }
        if "no date" in server.ways:
            del version["Last-Modified"]
        version = {name: value for name, value in version.items() if value}
        start = int(range_.removeprefix("bytes=").removesuffix("-")) if range_ else 0
        condition = self.headers.get("If-Range")
        assert not (condition or "").startswith("W/")
        changed = condition not in (None, *version.values()) and "no If-Range" not in server.ways
        if "no ranges" in server.ways or not range_ or changed:
            return self.answer(200, data, version)
        if start >= len(data):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        content_range = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.answer(206, data[start:], version | {"Content-Range": content_range})

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
    # a client that closes the connection early is no error of the program under test
    server.handle_error = lambda *request: None
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


def checkpoint(value: float = 0.0, count: int = 5000) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(float(count)) + value}, buffer)
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
    with pytest.raises(UserError, match="cut off after 5000 bytes.*the same command continues it"):
        fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)
    assert not (tmp_path / "a.pth").exists() and (tmp_path / "a.pth.part").stat().st_size == 5000
    fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)
    assert host.asked[-1] == ("a.pth", "bytes=5000-")
    assert (tmp_path / "a.pth").read_bytes() == data


def stopped(host, tmp_path, monkeypatch):
    """A download of a.pth that was given up: 5000 bytes of it are here."""
    host.files["a.pth"], host.cuts = checkpoint(1), [5000]
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(UserError, match="cut off after 5000 bytes"):
        fetch(f"{host.url}/a.pth", tmp_path / "a.pth", torch.load)
    host.asked.clear()


WAYS = [set(), {"no ETag"}, {"weak ETag"}, {"weak ETag", "no date"}, {"no If-Range"},
        {"no If-Range", "no ETag"}, {"no ETag", "no date"}]  # fmt: skip


@pytest.mark.parametrize("length", [5000, 4000], ids=["same length", "shorter"])
@pytest.mark.parametrize("ways", WAYS, ids=lambda ways: ", ".join(sorted(ways)) or "as usual")
def test_a_file_that_changed_in_between_is_fetched_anew(host, tmp_path, monkeypatch, ways, length):
    host.ways = ways
    stopped(host, tmp_path, monkeypatch)
    host.files["a.pth"] = checkpoint(2, length)
    fetch(f"{host.url}/a.pth", tmp_path / "a.pth", torch.load)  # which verifies no checksum
    assert (tmp_path / "a.pth").read_bytes() == host.files["a.pth"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("ways", WAYS, ids=lambda ways: ", ".join(sorted(ways)) or "as usual")
def test_a_file_that_has_not_changed_goes_on(host, tmp_path, monkeypatch, ways):
    host.ways = ways
    stopped(host, tmp_path, monkeypatch)
    fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)
    assert (tmp_path / "a.pth").read_bytes() == host.files["a.pth"]
    # a host that tells nothing about the version is asked for the whole file
    expected = None if ways == {"no ETag", "no date"} else "bytes=5000-"
    assert host.asked == [("a.pth", expected)]


def test_a_known_sum_lets_a_download_go_on_without_a_version(host, tmp_path, monkeypatch):
    host.ways = {"no ETag", "no date"}
    stopped(host, tmp_path, monkeypatch)
    digest = hashlib.sha256(host.files["a.pth"]).hexdigest()
    fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights, digest)
    assert host.asked == [("a.pth", "bytes=5000-")]


def test_a_part_from_another_address_is_not_gone_on_with(host, tmp_path, monkeypatch):
    stopped(host, tmp_path, monkeypatch)
    fetch(f"{host.url}/other/a.pth", tmp_path / "a.pth", read_weights)
    assert host.asked == [("a.pth", None)]


def test_a_part_that_was_whole_is_not_fetched_again(host, tmp_path, monkeypatch):
    stopped(host, tmp_path, monkeypatch)
    data, part = host.files["a.pth"], tmp_path / "a.pth.part"
    part.write_bytes(data)
    fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)
    assert host.asked == [("a.pth", f"bytes={len(data)}-")]
    stopped(host, tmp_path, monkeypatch)
    part.write_bytes(data + b"more")
    fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)
    assert (tmp_path / "a.pth").read_bytes() == data


def test_a_damaged_record_of_the_version_is_passed_over(host, tmp_path, monkeypatch):
    for content in ("{", "[]", "[" * 9999, '{"etag": [1]}', ""):
        stopped(host, tmp_path, monkeypatch)
        (tmp_path / "a.pth.part.json").write_text(content)
        fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)
        assert host.asked == [("a.pth", None)]


def test_a_checkpoint_with_a_wrong_checksum_gets_no_name(host, tmp_path):
    data = bytearray(checkpoint())
    data[data.index(torch.arange(5000.0).numpy().tobytes()) + 99] ^= 1
    host.files["a.pth"] = bytes(data)
    with pytest.raises(UserError, match="checksum of data/0 in it is wrong"):
        fetch(f"{host.url}/a.pth", tmp_path / "a.pth", read_weights)
    assert not list(tmp_path.iterdir())


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


DIGEST = "0123456789abcdef" * 4
LINES = [f"{DIGEST}  a.pth", f"{DIGEST} *a.pth", f"{DIGEST}  ./a.pth", f"{DIGEST} *./a.pth",
         f"{DIGEST}\ta.pth", f"{DIGEST} a.pth", f"SHA256 (a.pth) = {DIGEST}",
         f"SHA256 (./a.pth) = {DIGEST}", f"SHA2-256(a.pth)= {DIGEST}", f"{DIGEST.upper()}  a.pth",
         f"{DIGEST}  a.pth\r\n", f"\ufeff{DIGEST}  a.pth",
         f"# of today\n\n{DIGEST}  a.pth"]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_what_the_programs_write_is_understood(host, line):
    host.files["SHA256SUMS"] = f"{line}\n".encode()
    assert download.read_sums(host.url) == {"a.pth": DIGEST}


def test_names_with_blanks_and_escaped_ones():
    text = f"{DIGEST}  a b.pth\nSHA256 (a (1).pth) = {DIGEST}\n\\{DIGEST}  a\\\\b\\nc\n"
    assert list(parse_sums(text, "sums")) == ["a b.pth", "a (1).pth", "a\\b\nc"]


@pytest.mark.parametrize(
    "text, said",
    [("welcome", "line 1: 'welcome' is not the SHA-256 of a file"),
     (f"{DIGEST}  a\n{DIGEST[:-1]}  b", "line 2: "), (f"MD5 (a) = {DIGEST}", "line 1: "),
     (f"{DIGEST}  a\n{DIGEST[::-1]}  ./a", "two different checksums of a"),
     (f"{DIGEST}\n", "line 1: "), ("#" * 2**21, "it is too long")],
)  # fmt: skip
def test_sums_that_cannot_be_parsed_are_an_error(host, run, tmp_path, text, said):
    host.files = {name: checkpoint() for name in SOURCES["models"]()}
    host.files["SHA256SUMS"] = text.encode()
    status, output, _ = run("models", str(tmp_path), program="scripts.download", defaults=False)
    last = output.splitlines()[-1]
    assert status == 2 and said in last and f"error: {host.url}/SHA256SUMS" in last
    assert not list(tmp_path.glob("*.pth*"))


@pytest.mark.parametrize("listed", [0, 3])
def test_what_is_not_in_the_sums_is_an_error(host, run, tmp_path, listed):
    names = SOURCES["energy_graph_edges"]()
    host.files = {name: checkpoint() for name in names}
    digest = hashlib.sha256(checkpoint()).hexdigest()
    host.files["SHA256SUMS"] = "".join(
        f"SHA256 ({n}) = {digest}\n" for n in names[:listed]
    ).encode()
    status, output, _ = run(
        "energy_graph_edges", str(tmp_path / "to"), program="scripts.download", defaults=False
    )
    last = output.splitlines()[-1]
    assert status == 2 and f"no entry in its SHA256SUMS for {len(names) - listed}" in last
    assert all(name in last for name in names[listed:])
    assert {path.name for path in (tmp_path / "to").glob("*")} == set(names[:listed])


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


def test_a_broken_archive_is_not_kept_for_ever(host, tmp_path, run):
    good = gzip.compress(archive(rgb__a=random.Random(0).randbytes(5000)))
    call = ["data", str(tmp_path / "data"), "--quiet", "--buildings=almena", "--domains=rgb"]
    for broken in (good[:300], good[:12], good[:-6] + bytes(6)):
        host.files["almena_rgb.tar"] = broken
        status, output, _ = run(*call, program="scripts.download", defaults=False)
        assert status == 2 and "is not what was expected" in output.splitlines()[-1], output
        assert "Traceback" not in output and not list((tmp_path / "data").glob("*"))
    host.files["almena_rgb.tar"] = good
    status, output, _ = run(*call, program="scripts.download", defaults=False)
    assert status == 0 and (tmp_path / "data" / "almena_rgb" / "rgb" / "a").exists(), output


@pytest.mark.parametrize(
    "mirror, words, said",
    [("", ["models"], "set XTC_MIRROR"), ("ftp://x", ["models"], "XTC_MIRROR begins with"),
     ("http://127.0.0.1:9", ["models"], "no answer from http://127.0.0.1:9"),
     ("x", ["modles"], "did you mean models"), ("x", [], "what to fetch"),
     ("x", ["models", "--domains=rgb"], "are for data"),
     ("http://127.0.0.1:9", ["data", "--buildings=../x"], "is not the name of a building"),
     ("http://127.0.0.1:9", ["data", "--domains=rbg"], "no task 'rbg'")],
)  # fmt: skip
def test_what_cannot_be_fetched_is_one_sentence(run, monkeypatch, tmp_path, mirror, words, said):
    monkeypatch.setenv("XTC_MIRROR", mirror)
    monkeypatch.chdir(tmp_path)
    words = [*words[:1], str(tmp_path / "to"), *words[1:]] if words else []
    status, output, _ = run(*words, program="scripts.download", defaults=False)
    assert status == 2 and said in output.splitlines()[-1] and "Traceback" not in output


# ---- publishers, then the mirror ------------------------------------------------------


@pytest.fixture
def publisher(host, monkeypatch):
    """The publishers' addresses lead to `host`, to the files `share_…`; no mirror is set."""
    monkeypatch.delenv("XTC_MIRROR")
    for kind in addresses.ARCHIVES:
        monkeypatch.setitem(addresses.ARCHIVES, kind, f"{host.url}/s/share_{kind}")
    for name in addresses.FILES:
        monkeypatch.setitem(addresses.FILES, name, f"{host.url}/s/share_{name}?download=1")
    return host


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    return archive(**{name.replace("/", "__"): content for name, content in files.items()})


def fetched(run, *words: str) -> tuple[int, str]:
    """The exit status and the output of the program."""
    status, output, _ = run(*words, "--quiet", program="scripts.download", defaults=False)
    assert "Traceback" not in output
    return status, output


@pytest.mark.parametrize("pack", [zipped, tarred, lambda files: gzip.compress(tarred(files))],
                         ids=["zip", "tar", "tar.gz"])  # fmt: skip
def test_the_publishers_archive_is_unpacked(publisher, run, tmp_path, pack):
    names = SOURCES["percep_models"]()
    inside = {f"percep_models/{name}": checkpoint(i) for i, name in enumerate(names)}
    publisher.files["share_percep_models"] = pack({**inside, "percep_models/note.txt": b"hello"})
    status, output = fetched(run, "percep_models", str(tmp_path / "to"))
    assert status == 0, output
    there = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    assert there == {name.partition("/")[2]: content for name, content in inside.items()}
    assert [name for name, _ in publisher.asked] == ["share_percep_models"]
    status, output = fetched(run, "percep_models", str(tmp_path / "to"))
    assert status == 0 and output.count("there already") == len(names)
    assert len(publisher.asked) == 1


def test_what_the_publishers_archive_lacks_comes_from_the_mirror(
    publisher, run, tmp_path, monkeypatch
):
    """The consistency networks of the energy are in another archive; one file is broken."""
    names = SOURCES["energy_graph_edges"]()
    publisher.files["share_energy_graph_edges"] = zipped(
        {f"energy_graph_edges/{name}": checkpoint() for name in names[5:]}
        | {f"energy_graph_edges/{names[4]}": b"broken"}
    )
    publisher.files["share_models"] = zipped({f"models/{name}": checkpoint() for name in names[:3]})
    publisher.files |= {name: checkpoint(1) for name in names}
    status, output = fetched(run, "energy_graph_edges", str(tmp_path / "to"))
    last = output.splitlines()[-1]
    assert status == 2 and f"{names[4]}: left out" in output
    assert last.startswith(f"error: could not fetch 2 of {len(names)} files: tried ")
    assert f"folder that holds {names[3]}, {names[4]}, or all in energy_graph_edges.zip" in last
    monkeypatch.setenv("XTC_MIRROR", publisher.url)
    status, output = fetched(run, "energy_graph_edges", str(tmp_path / "to"))
    assert status == 0, output
    changed = [n for n in names if (tmp_path / "to" / n).read_bytes() == checkpoint(1)]
    assert changed == names[3:5]


@pytest.mark.parametrize("ending, pack", [(".zip", zipped), (".tar", tarred)])
def test_a_mirror_may_hold_one_archive(host, run, tmp_path, ending, pack):
    names = SOURCES["percep_models"]()
    host.files[f"percep_models{ending}"] = pack({name: checkpoint() for name in names})
    status, output = fetched(run, "percep_models", str(tmp_path))
    assert status == 0 and {path.name for path in tmp_path.glob("*.pth")} == set(names), output


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_the_publishers_data_are_archives_in_an_archive(publisher, run, tmp_path, pack):
    views = {"rgb": "rgb/a_domain_rgb.png", "normal": "almena_normal/normal/a_domain_normal.png"}
    inside = {f"data/almena_{domain}.zip": pack({view: b"1"}) for domain, view in views.items()}
    publisher.files["share_data"] = zipped(inside)
    status, output = fetched(run, "data", str(tmp_path / "data"), "--buildings=almena")
    assert status == 0, output
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["data/almena_normal/normal/a_domain_normal.png",
                     "data/almena_rgb/rgb/a_domain_rgb.png"]  # fmt: skip
    status, output = fetched(run, "data", str(tmp_path / "data"), "--buildings=tolstoy")
    assert status == 2 and "tolstoy_rgb, tolstoy_normal (each .zip or .tar)" in output
    assert len(publisher.asked) == 1  # the sample does not hold that building


def test_a_mirror_may_hold_zip_files_of_data(host, run, tmp_path):
    host.files["almena_rgb.zip"] = zipped({"rgb/a_domain_rgb.png": b"1"})
    words = ["data", str(tmp_path), "--buildings=almena", "--domains=rgb"]
    status, output = fetched(run, *words)
    assert status == 0 and (tmp_path / "almena_rgb/rgb/a_domain_rgb.png").read_bytes() == b"1"


def test_omnidata_comes_from_its_publisher_or_else_from_the_mirror(
    publisher, run, tmp_path, monkeypatch
):
    name = addresses.OMNIDATA_FILE
    publisher.files[f"share_{name}"] = checkpoint(1)
    assert fetched(run, "omnidata", str(tmp_path / "a"))[0] == 0
    assert (tmp_path / "a" / name).read_bytes() == checkpoint(1)
    publisher.files = {name: checkpoint(2)}
    status, output = fetched(run, "omnidata", str(tmp_path / "b"))
    last = output.splitlines()[-1]
    address = addresses.FILES[name]
    assert status == 2 and f"tried {address} (it is not there); set XTC_MIRROR" in last
    assert last.endswith(f"that holds {name}") and not (tmp_path / "b").exists()
    monkeypatch.setenv("XTC_MIRROR", publisher.url)
    assert fetched(run, "omnidata", str(tmp_path / "b"))[0] == 0
    assert (tmp_path / "b" / name).read_bytes() == checkpoint(2)


def test_the_hashes_in_taskonomys_file_names_are_checked(publisher, run, tmp_path, monkeypatch):
    contents = {kind: checkpoint(i) for i, kind in enumerate(("encoder", "decoder"))}
    names = [f"normal_{kind}-{hashlib.sha256(content).hexdigest()}.pth"
             for kind, content in contents.items()]  # fmt: skip
    monkeypatch.setitem(addresses.TASKONOMY, "normal", addresses.TaskonomyFiles(*names, channels=3))
    publisher.files = dict(zip(names, contents.values(), strict=True))
    for name in names:
        monkeypatch.setitem(addresses.FILES, name, f"{publisher.url}/{name}")
    words = ["taskonomy", str(tmp_path / "to"), "--domains=normal"]
    assert fetched(run, *words)[0] == 0
    assert {path.name for path in (tmp_path / "to").iterdir()} == set(names)
    (tmp_path / "to" / names[1]).unlink()
    publisher.files[names[1]] = checkpoint(3)
    monkeypatch.setenv("XTC_MIRROR", publisher.url)  # which has the same, and it is refused too
    status, output = fetched(run, *words)
    assert status == 2 and output.count("its SHA-256 is") == 2
    assert [path.name for path in (tmp_path / "to").iterdir()] == names[:1]
    status, output = fetched(run, "taskonomy", str(tmp_path), "--domains=sobel_edges")
    assert status == 2 and "networks predict normal, depth_zbuffer," in output.splitlines()[-1]


def test_a_publisher_that_does_not_answer_is_not_asked_for_each_file(run, tmp_path, monkeypatch):
    monkeypatch.delenv("XTC_MIRROR", raising=False)
    status, output = fetched(run, "taskonomy", str(tmp_path / "to"))  # the tests have no network
    last = output.splitlines()[-1]
    assert status == 2 and "and not the 13 others there" in last
    assert all(name in last for name in SOURCES["taskonomy"]())


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


@pytest.mark.slow
def test_a_shell_script_without_a_mirror(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XTC_MIRROR"}
    command = [ROOT / "tools" / "download_percep_models.sh", tmp_path / "models"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("error: could not fetch ")
    said = done.stderr.partition("; set XTC_MIRROR to the address of a folder that holds ")[2]
    assert all(name in said for name in SOURCES["percep_models"]())
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_a_folder_is_relative_to_where_the_script_is_called(host, tmp_path):
    """Before: relative to the project."""
    host.files = {name: checkpoint() for name in SOURCES["percep_models"]()}
    environment = os.environ | {"XTC_MIRROR": host.url}
    command = [ROOT / "tools" / "download_percep_models.sh", "here"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "here").iterdir()} == set(host.files)
    assert not (ROOT / "here").exists()

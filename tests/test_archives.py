"""Archives from elsewhere: what is good is unpacked, what is hostile leaves nothing."""

import gzip
import io
import random
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from loading.archives import check_archive, unpack
from utils import UserError


def tar_of(path: Path, *members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tuple):
                name, content = member
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                archive.addfile(member)
    return path


def zip_of(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def files(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


@pytest.mark.parametrize("form", ["w", "w:gz", "w:xz", "zip"])
def test_good_archives_are_unpacked_over_what_is_there(tmp_path, form):
    members = [("rgb/a.png", b"1"), ("./rgb/b.png", b"2" * 5000), ("c", b"")]
    if form == "zip":
        archive = zip_of(tmp_path / "a", ("rgb/", b""), *members)
    else:
        archive = tar_of(tmp_path / "a", special("rgb", tarfile.DIRTYPE), *members, mode=form)
    folder = tmp_path / "to"
    (folder / "rgb").mkdir(parents=True)
    (folder / "rgb" / "a.png").write_bytes(b"old")
    (folder / "own").write_bytes(b"own")
    assert unpack(archive, folder) == 3
    expected = {"rgb/a.png": b"1", "rgb/b.png": b"2" * 5000, "c": b"", "own": b"own"}
    assert files(folder) == expected


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_of_a_name_that_comes_twice_the_last_one_counts(tmp_path, make):
    archive = make(tmp_path / "a", ("b/c", b"1"), ("./b//c", b"2"), ("b/c", b"3"))
    assert unpack(archive, tmp_path / "to") == 1
    assert files(tmp_path / "to") == {"b/c": b"3"}


EVIL_NAMES = ["../evil", "/tmp/xtc-evil", "//tmp/xtc-evil", "///tmp/xtc-evil", "a/../../evil",
              "..\\evil", "C:\\evil", "a/.."]  # fmt: skip


@pytest.mark.parametrize("name", EVIL_NAMES)
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_names_that_lead_out_are_refused(tmp_path, make, name):
    archive = make(tmp_path / "a", ("good", b"1"), (name, b"evil"))
    with pytest.raises(UserError, match="refused: .* unsafe to unpack"):
        unpack(archive, tmp_path / "to" / "here")
    assert set(files(tmp_path)) == {"a"} and not Path("/tmp/xtc-evil").exists()


@pytest.mark.parametrize(
    "members",
    [[special("l", tarfile.SYMTYPE, ".."), ("l/evil", b"evil")],
     [special("l", tarfile.SYMTYPE, "/etc/passwd")], [special("l", tarfile.LNKTYPE, "../a")],
     [special("p", tarfile.FIFOTYPE)], [special("d", tarfile.CHRTYPE)]],
    ids=["link to a folder", "link to a file", "hard link", "pipe", "device"],
)  # fmt: skip
def test_links_and_devices_are_refused(tmp_path, members):
    archive = tar_of(tmp_path / "a", ("good", b"1"), *members)
    with pytest.raises(UserError, match="a link or a device"):
        unpack(archive, tmp_path / "to")
    assert set(files(tmp_path)) == {"a"}


def test_links_in_a_zip_are_refused(tmp_path):
    archive = zip_of(tmp_path / "a", (zip_link("l"), b"/etc/passwd"))
    with pytest.raises(UserError, match="it is a link"):
        unpack(archive, tmp_path / "to")


def test_bombs_are_refused(tmp_path):
    zeros = b"\0" * (80 * 2**20)
    bombs = [zip_of(tmp_path / "a.zip", ("zeros", zeros), how=zipfile.ZIP_DEFLATED),
             tar_of(tmp_path / "a.tgz", ("zeros", zeros), mode="w:gz")]  # fmt: skip
    for bomb in bombs:
        with pytest.raises(UserError, match="far more than its own size"):
            unpack(bomb, tmp_path / "to")
    assert not files(tmp_path / "to")


def test_long_headers_are_refused(tmp_path):
    """tarfile reads an extended header as one block, whatever its size."""
    bombs = []
    for number, kind in enumerate((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)):
        header, content = tarfile.TarInfo("header"), b"5000000 comment=" + b"a" * 4_999_983 + b"\n"
        header.type, header.size = kind, len(content)
        path = tmp_path / f"{number}.tgz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512))
            file.write(tarfile.TarInfo("a").tobuf() + bytes(1024))
        bombs.append(path)
    # and a global one that grows from member to member
    bombs.append(tmp_path / "growing.tgz")
    with gzip.open(bombs[-1], "wb", compresslevel=1) as file:
        for number in range(9):
            own = {f"{number}": "x" * 50_000}
            file.write(tarfile.TarInfo.create_pax_global_header(own))
            file.write(tarfile.TarInfo(f"{number}").tobuf())
        file.write(bytes(1024))
    for bomb in bombs:
        with pytest.raises(UserError, match="its headers are longer than 262144 bytes"):
            unpack(bomb, tmp_path / "to")
        assert not files(tmp_path / "to")


@pytest.mark.parametrize("name", ["{}", "{}/" + "/".join("abcdefghij")], ids=["files", "folders"])
def test_great_numbers_of_empty_files_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr("loading.archives.ALWAYS_ALLOWED", 2**20)
    names = [name.format(number) for number in range(1000)]
    bombs = [tar_of(tmp_path / "a.tgz", *((name, b"") for name in names), mode="w:gz"),
             zip_of(tmp_path / "a.zip", *((name, b"") for name in names))]  # fmt: skip
    for bomb in bombs:
        with pytest.raises(UserError, match="far more than its own size"):
            check_archive(bomb)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tgz", "a.zip"]


def test_an_archive_is_whole_or_refused(tmp_path):
    """What tarfile does not notice itself: checksums, a damaged header, an end that is missing."""
    content = random.Random(0).randbytes(20_000)
    whole = {
        how: tar_of(tmp_path / "a", ("a", content), ("b", content), mode=f"w:{how}").read_bytes()
        for how in ("", "gz", "bz2", "xz")
    }
    second = 512 + 20_480  # where the header of the second file begins
    damaged = {
        "the gzip's checksum": whole["gz"][:-6] + bytes([whole["gz"][-6] ^ 1]) + whole["gz"][-5:],
        "the gzip's length": whole["gz"][:-1],
        "gz cut off": whole["gz"][:300],
        "gz cut off soon": whole["gz"][:15],
        "bz2 cut off": whole["bz2"][:-5],
        "xz cut off": whole["xz"][:-5],
        "xz damaged": whole["xz"][:9000] + bytes(9) + whole["xz"][9009:],
        "the end is missing": whole[""][:second],
        "the second header": whole[""][: second + 5] + b"!" + whole[""][second + 6 :],
    }
    for how, good in whole.items():
        (tmp_path / how.rjust(3, "_")).write_bytes(good)
        check_archive(tmp_path / how.rjust(3, "_"))
    for number, broken in enumerate(damaged.values()):
        path = tmp_path / f"broken{number}"
        path.write_bytes(broken)
        for read in (check_archive, lambda path: unpack(path, tmp_path / "to")):
            with pytest.raises(UserError, match=f"cannot unpack .*broken{number}: "):
                read(path)
        assert not files(tmp_path / "to")


def test_a_tar_file_that_ends_with_a_zip_file_is_a_tar_file(tmp_path):
    inner = zip_of(tmp_path / "inner", ("b", b"1")).read_bytes()
    archive = tar_of(tmp_path / "a", ("inner.zip", inner))
    assert unpack(archive, tmp_path / "to") == 1
    assert files(tmp_path / "to") == {"inner.zip": inner}


def test_broken_archives_leave_the_folder_as_it_was(tmp_path):
    whole = tar_of(tmp_path / "a", ("a", b"1" * 3000), ("b", b"2" * 3000)).read_bytes()
    squeezed = tar_of(tmp_path / "b", ("a", bytes(range(256)) * 99), mode="w:gz").read_bytes()
    zipped = zip_of(tmp_path / "c", ("a", b"1" * 3000)).read_bytes()
    for content in (whole[:5000], squeezed[:-60], zipped[:2000], zipped[:-4], b"", b"<html>"):
        (tmp_path / "broken").write_bytes(content)
        with pytest.raises(UserError, match="broken"):
            unpack(tmp_path / "broken", tmp_path / "to")
        assert not list((tmp_path / "to").iterdir())
    with pytest.raises(UserError, match="cannot unpack .*absent"):
        unpack(tmp_path / "absent", tmp_path / "to")


@pytest.mark.parametrize("there,name", [("a", "a/b.png"), ("a/b.png/c", "a/b.png")])
def test_what_stands_in_the_way_is_named_before_anything_is_moved(tmp_path, there, name):
    folder, archive = tmp_path / "folder", tmp_path / "x.zip"
    (folder / there).parent.mkdir(parents=True)
    (folder / there).write_text("mine")
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("0.png", "new")
        zipped.writestr(name, "new")
    with pytest.raises(UserError, match="is in the way"):
        unpack(archive, folder)
    assert (folder / there).read_text() == "mine" and not (folder / "0.png").exists()

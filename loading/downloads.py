"""Downloads that can be resumed."""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

from files import read_json, write_json
from utils import UserError, log

TIMEOUT = 30  # seconds to wait for a response
ATTEMPTS = 5  # give up after this many attempts in a row without progress
PAUSE = 1.0  # seconds after the first failed attempt; doubled after each further one
BLOCK = 2**20  # bytes read at a time
SUMS = "SHA256SUMS"  # optional file of a mirror; the authors published neither sizes nor hashes

CUT = OSError, http.client.HTTPException  # errors of a broken connection (URLError included)


class Unreachable(UserError):
    """The host cannot be reached, or does not send the file."""


class NotThere(Unreachable):
    """The host does not have the file."""


class Interrupted(Exception):
    """The transfer ended early and can be resumed."""


class Changed(Exception):
    """The file on the host is not the one of which a part was fetched before."""


def fetch(
    url: str,
    path: Path,
    check: Callable[[Path], object],
    sha256: str = "",
    quiet: bool = True,
    attempts: int | None = None,
) -> None:
    """Download `url` to `path`.

    The data are written to `path`.part, from which the next call resumes. `path`.part.json
    records which version of the file they belong to: its ETag, date and length. If the file on
    the host has changed since, the download begins anew. It also does if the host sends neither
    ETag nor date, unless `sha256` is given, by which a mixture of two versions would be noticed.

    The file is renamed to `path` when it is complete: when its length and, if given, its
    SHA-256 are right, and `check` raises no UserError. Raises NotThere if the host does not have
    the file, Unreachable if it does not respond or sends a web page, or if the transfer is
    interrupted `attempts` times in a row (default: `ATTEMPTS`) without progress. Raises
    UserError if the file is not what was expected.
    """
    part = path.with_name(f"{path.name}.part")
    failures, previous = 0, -1
    while True:
        try:
            _continue(url, part, quiet, bool(sha256))
            break
        except Interrupted as error:
            size = _size(part)
            failures, previous = (failures + 1 if size <= previous else 1), size
            if failures >= (attempts or ATTEMPTS):
                text = (
                    f"{url} was cut off after {size} bytes ({error}); the same command continues it"
                )
                raise Unreachable(text) from None
            time.sleep(PAUSE * 2 ** (failures - 1))
    try:
        if sha256:
            _check_sum(url, part, sha256)
        check(part)
    except UserError as error:
        part.unlink()
        _record_of(part).unlink(missing_ok=True)
        raise UserError(f"{url} is not what was expected and is removed: {error}") from None
    os.replace(part, path)
    _record_of(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _record_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _continue(url: str, part: Path, quiet: bool, verified: bool) -> None:
    """Download the missing rest of `part`. Raises Interrupted if the transfer ends early.

    `verified`: whether the SHA-256 of the whole file will be compared.
    """
    response, size = _begun(url, part, verified)
    if response is None:  # the file is complete
        return
    with response:
        length = response.headers.get("Content-Length")
        total = size + int(length) if length and length.isdecimal() else None
        bar = tqdm(total=total, initial=size, unit="B", unit_scale=True, desc=part.stem,
                   disable=quiet or None)  # fmt: skip
        try:
            with bar, open(part, "ab" if size else "wb") as file:
                while block := _block(response):
                    file.write(block)
                    size += len(block)
                    bar.update(len(block))
        except OSError as error:
            raise UserError(f"cannot write {part}: {error.strerror}") from None
    if total is not None and size < total:
        raise Interrupted(f"{size} of {total} bytes arrived")


def _begun(url: str, part: Path, verified: bool) -> tuple[http.client.HTTPResponse | None, int]:
    """Request the missing rest of `part`. Returns the response and the byte at which it begins.

    The response is None if nothing is missing. If the host sends the whole file, `part` is
    removed and the file's version is recorded.
    """
    version = _recorded_version(url, part)
    is_known = version.get("etag") or version.get("modified")
    size = _size(part) if is_known or verified else 0
    try:
        response = _opened(url, size, version)
    except Changed:
        log.info("%s has changed on the host: it is fetched anew", url)
        response = _opened(url, 0, {})
    if response is None or response.status == 206:
        return response, size
    try:
        part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror}") from None
    write_json(_record_of(part), {"address": _address(url), **_version(response)})
    return response, 0


def _recorded_version(url: str, part: Path) -> dict:
    """Return what is recorded of the file that `part` is from; {} if nothing is."""
    try:
        version = read_json(_record_of(part))
    except UserError:
        return {}
    is_ours = version.get("address") == _address(url)
    return version if is_ours and all(isinstance(v, str) for v in version.values()) else {}


def _address(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()  # an address may contain a password


def _version(response: http.client.HTTPResponse) -> dict[str, str]:
    """Return what a response says about its file's version: ETag, date, length in bytes."""
    headers = response.headers
    whole = (headers.get("Content-Range") or "").rpartition("/")[2]
    length = whole if response.status == 206 else headers.get("Content-Length")
    version = {"etag": headers.get("ETag"), "modified": headers.get("Last-Modified")}
    return {name: value for name, value in {**version, "length": length}.items() if value}


def _block(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(BLOCK)
    except CUT as error:
        raise Interrupted(str(error) or type(error).__name__) from None


def _opened(url: str, offset: int, version: Mapping) -> http.client.HTTPResponse | None:
    """Request `url` from byte `offset` on, if the host supports it.

    Returns None if the file ends there. Raises Changed if the host's file is not of `version`
    (see `_version`; entries that it lacks are not compared).
    """
    headers = {"User-Agent": "xtconsistency", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        etag = version.get("etag", "")
        # a weak ETag may not be used here; the answer's is compared below
        validator = etag if etag and not etag.startswith("W/") else version.get("modified")
        if validator:
            request.add_header("If-Range", validator)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        _check_end(url, offset, error)
        return None
    except CUT as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, (FileNotFoundError, IsADirectoryError)):  # for file:// addresses
            raise NotThere(f"no file {url}") from None
        if isinstance(reason, (TimeoutError, ConnectionResetError, http.client.HTTPException)):
            raise Interrupted(str(reason) or type(reason).__name__) from None
        raise Unreachable(f"no answer from {url}: {reason}") from None
    except ValueError as error:
        raise UserError(f"{url} is not an address: {error}") from None
    if "html" in (response.headers.get("Content-Type") or ""):
        response.close()
        raise Unreachable(f"{url} gives a web page, not the file")
    if response.status == 206:
        if not (response.headers.get("Content-Range") or "").startswith(f"bytes {offset}-"):
            response.close()
            raise UserError(f"{url}: the host answers with another part than was asked for")
        if any(version.get(name, now) != now for name, now in _version(response).items()):
            response.close()
            raise Changed
    return response


def _check_end(url: str, offset: int, error: urllib.error.HTTPError) -> None:
    """Return if the error means that the file is complete.

    Raises UserError, NotThere, Changed or Interrupted otherwise.
    """
    if error.code == 416 and offset:
        if (error.headers.get("Content-Range") or "") == f"bytes */{offset}":
            return
        raise Changed  # it is shorter than the part that is here
    if error.code in (404, 410):
        raise NotThere(f"no file {url}") from None
    if error.code == 429 or error.code >= 500:
        raise Interrupted(f"the host answers {error.code} {error.reason}")
    raise Unreachable(f"{url}: the host answers {error.code} {error.reason}")


def _check_sum(url: str, part: Path, sha256: str) -> None:
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise UserError(f"its SHA-256 is {digest}, not {sha256}")


# A line of SHA256SUMS as sha256sum and shasum write it, with two spaces, or a space and a star
# for binary and a backslash in front where the name is escaped; and as BSD's sha256,
# sha256sum --tag and openssl write it.
GNU_LINE = re.compile(r"\\?(?P<digest>[0-9a-f]{64})[ \t]+\*?(?P<name>\S.*)", re.IGNORECASE)
BSD_LINE = re.compile(
    r"SHA(?:2-)?256 ?\((?P<name>.+)\) ?= ?(?P<digest>[0-9a-f]{64})", re.IGNORECASE
)


def read_sums(mirror: str) -> dict[str, str] | None:
    """Return {file: SHA-256} from a mirror's SHA256SUMS, or None if it has no such file.

    Raises Unreachable if the mirror does not respond, and UserError if the file cannot be parsed.
    """
    try:
        response = _opened(f"{mirror}/{SUMS}", 0, {})
        assert response is not None  # None is returned only for an offset above 0
        with response:
            content = response.read(BLOCK + 1)
    except NotThere:
        return None
    except (*CUT, Interrupted) as error:
        raise Unreachable(f"{mirror} does not answer: {error}") from None
    if len(content) > BLOCK:
        raise UserError(f"{mirror}/{SUMS} is not a list of checksums: it is too long")
    return parse_sums(content.decode("utf-8-sig", "replace"), f"{mirror}/{SUMS}")


def parse_sums(text: str, source: str) -> dict[str, str]:
    """Return {file: SHA-256} from the output of sha256sum, shasum -a 256 or BSD's sha256.

    A leading `./` of a name is removed. Empty lines and lines that begin with # are skipped.
    Raises UserError, which names `source`, for any other line, and for a file that is listed
    with two different checksums.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        entry = GNU_LINE.fullmatch(line.rstrip()) or BSD_LINE.fullmatch(line.rstrip())
        if not entry:
            raise UserError(f"{source}, line {number}: {line[:80]!r} is not the SHA-256 of a file")
        name, digest = re.sub(r"^(\./+)+", "", entry["name"]), entry["digest"].lower()
        if line.startswith("\\"):
            name = name.replace("\\n", "\n").replace("\\\\", "\\")
        if sums.setdefault(name, digest) != digest:
            raise UserError(f"{source} has two different checksums of {name}")
    return sums

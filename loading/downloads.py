"""Downloads that can be resumed."""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from utils import UserError

TIMEOUT = 30  # seconds to wait for a response
ATTEMPTS = 5  # give up after so many attempts in a row without progress
PAUSE = 1.0  # seconds after the first failed attempt; doubled after each further one
BLOCK = 2**20  # bytes read at a time
SUMS = "SHA256SUMS"  # optional file of a mirror; the authors published neither sizes nor hashes

CUT = OSError, http.client.HTTPException  # errors of a broken connection (URLError included)


class NotThere(UserError):
    """The host does not have the file."""


class Interrupted(Exception):
    """The transfer ended early and can be resumed."""


def fetch(
    url: str,
    path: Path,
    check: Callable[[Path], object],
    sha256: str = "",
    quiet: bool = True,
) -> None:
    """Download `url` to `path`.

    The data are written to `path`.part, from which the next call resumes. The file is renamed
    to `path` when it is complete: when its length and, if given, its SHA-256 are right, and
    `check` raises no UserError. Raises NotThere if the host does not have the file. Raises
    UserError if the host does not respond or sends something else, or if the transfer is
    interrupted too often.
    """
    part = path.with_name(f"{path.name}.part")
    failures, previous = 0, -1
    while True:
        try:
            _continue(url, part, quiet)
            break
        except Interrupted as error:
            size = _size(part)
            failures, previous = (failures + 1 if size <= previous else 1), size
            if failures >= ATTEMPTS:
                text = f"{url} was cut off after {size} bytes ({error}); the same again goes on"
                raise UserError(text) from None
            time.sleep(PAUSE * 2 ** (failures - 1))
    try:
        if sha256:
            _check_sum(url, part, sha256)
        check(part)
    except UserError as error:
        part.unlink()
        raise UserError(f"{url} is not what was expected and is removed: {error}") from None
    os.replace(part, path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(url: str, part: Path, quiet: bool) -> None:
    """Download the missing rest of `part`. Raises Interrupted if the transfer ends early."""
    size = _size(part)
    response = _opened(url, size)
    if response is None:  # the file is complete
        return
    with response:
        resumed = (response.headers.get("Content-Range") or "").startswith(f"bytes {size}-")
        if response.status == 206 and not resumed:
            raise UserError(f"{url}: the host answers with another part than was asked for")
        size = size if resumed else 0
        length = response.headers.get("Content-Length")
        total = size + int(length) if length and length.isdecimal() else None
        bar = tqdm(total=total, initial=size, unit="B", unit_scale=True, desc=part.stem,
                   disable=quiet or None)  # fmt: skip
        try:
            with bar, open(part, "ab" if resumed else "wb") as file:
                while block := _block(response):
                    file.write(block)
                    size += len(block)
                    bar.update(len(block))
        except OSError as error:
            raise UserError(f"cannot write {part}: {error.strerror}") from None
    if total is not None and size < total:
        raise Interrupted(f"{size} of {total} bytes came")


def _block(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(BLOCK)
    except CUT as error:
        raise Interrupted(str(error) or type(error).__name__) from None


def _opened(url: str, offset: int) -> http.client.HTTPResponse | None:
    """Request `url` from byte `offset` on, if the host supports it.

    Returns None if the file ends there.
    """
    headers = {"User-Agent": "xtconsistency", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
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
        raise UserError(f"no answer from {url}: {reason}; is XTC_MIRROR right?") from None
    except ValueError as error:
        raise UserError(f"{url} is no address: {error}") from None
    if "html" in (response.headers.get("Content-Type") or ""):
        response.close()
        raise UserError(f"{url} gives a web page, not the file: is XTC_MIRROR right?")
    return response


def _check_end(url: str, offset: int, error: urllib.error.HTTPError) -> None:
    """Return if the error means that the file is complete.

    Raises UserError, NotThere or Interrupted otherwise.
    """
    if error.code == 416 and offset:
        if (error.headers.get("Content-Range") or "") == f"bytes */{offset}":
            return
        raise UserError(f"{url} is shorter than what is here of it: remove its .part file")
    if error.code in (404, 410):
        raise NotThere(f"no file {url}") from None
    if error.code == 429 or error.code >= 500:
        raise Interrupted(f"the host answers {error.code} {error.reason}")
    raise UserError(f"{url}: the host answers {error.code} {error.reason}")


def _check_sum(url: str, part: Path, sha256: str) -> None:
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise UserError(f"its SHA-256 is {digest}, {SUMS} says {sha256}")


def read_sums(mirror: str) -> dict[str, str]:
    """Return {file: SHA-256} from a mirror's SHA256SUMS; empty if it has none.

    Raises UserError if the mirror does not respond.
    """
    try:
        response = _opened(f"{mirror}/{SUMS}", 0)
        assert response is not None  # None is returned only for an offset above 0
        with response:
            text = response.read(BLOCK).decode("utf-8", "replace")
    except NotThere:
        return {}
    except (*CUT, Interrupted) as error:
        raise UserError(f"{mirror} does not answer: {error}") from None
    entries = re.findall(r"^([0-9a-fA-F]{64}) [ *](\S+)\s*$", text, re.MULTILINE)
    return {name: digest.lower() for digest, name in entries}

"""Files fetched over the network: what was cut off goes on where it stopped."""

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

TIMEOUT = 30  # seconds without an answer
ATTEMPTS = 5  # in a row without a single byte more
PAUSE = 1.0  # seconds after the first failed attempt; doubled each time
BLOCK = 2**20
SUMS = "SHA256SUMS"  # of a mirror that has it; the publisher names neither sizes nor hashes

CUT = OSError, http.client.HTTPException  # a connection's end; URLError is an OSError


class NotThere(UserError):
    """The host answers, and has no such file."""


class Interrupted(Exception):
    """The transfer ended early, and may go on."""


def fetch(
    url: str,
    path: Path,
    check: Callable[[Path], object],
    sha256: str = "",
    quiet: bool = True,
) -> None:
    """Fetch `url` to `path`, by way of `path`.part, which the next call goes on with.

    `path` appears when it is whole: as long as announced, with that SHA-256 if given, and
    such that `check` raises no UserError. Raises NotThere, or UserError where the host does
    not answer, gives something else, or the transfer ends again and again.
    """
    part = path.with_name(f"{path.name}.part")
    failures, before = 0, -1
    while True:
        try:
            _continue(url, part, quiet)
            break
        except Interrupted as error:
            have = _size(part)
            failures, before = (failures + 1 if have <= before else 1), have
            if failures >= ATTEMPTS:
                text = f"{url} was cut off after {have} bytes ({error}); the same again goes on"
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
    """Fetch what `part` lacks. Raises Interrupted where the transfer ended early."""
    have = _size(part)
    answer = _opened(url, have)
    if answer is None:  # there is no more than what is there
        return
    with answer:
        resumed = (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
        if answer.status == 206 and not resumed:
            raise UserError(f"{url}: the host answers with another part than was asked for")
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdecimal() else None
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem,
                   disable=quiet or None)  # fmt: skip
        try:
            with bar, open(part, "ab" if resumed else "wb") as file:
                while block := _block(answer):
                    file.write(block)
                    have += len(block)
                    bar.update(len(block))
        except OSError as error:
            raise UserError(f"cannot write {part}: {error.strerror}") from None
    if total is not None and have < total:
        raise Interrupted(f"{have} of {total} bytes came")


def _block(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(BLOCK)
    except CUT as error:
        raise Interrupted(str(error) or type(error).__name__) from None


def _opened(url: str, have: int) -> http.client.HTTPResponse | None:
    """The host's answer, from byte `have` on if it can; None where that is the end."""
    headers = {"User-Agent": "xtconsistency", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        _check_end(url, have, error)
        return None
    except CUT as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, (FileNotFoundError, IsADirectoryError)):  # of file://
            raise NotThere(f"no file {url}") from None
        if isinstance(reason, (TimeoutError, ConnectionResetError, http.client.HTTPException)):
            raise Interrupted(str(reason) or type(reason).__name__) from None
        raise UserError(f"no answer from {url}: {reason}; is XTC_MIRROR right?") from None
    except ValueError as error:
        raise UserError(f"{url} is no address: {error}") from None
    if "html" in (answer.headers.get("Content-Type") or ""):
        answer.close()
        raise UserError(f"{url} gives a web page, not the file: is XTC_MIRROR right?")
    return answer


def _check_end(url: str, have: int, error: urllib.error.HTTPError) -> None:
    """Returns where the file is whole already; UserError, NotThere or Interrupted else."""
    if error.code == 416 and have:
        if (error.headers.get("Content-Range") or "") == f"bytes */{have}":
            return
        raise UserError(f"{url} is shorter than what is here of it: remove its .part file")
    if error.code in (404, 410):
        raise NotThere(f"no file {url}") from None
    if error.code == 429 or error.code >= 500:
        raise Interrupted(f"the host answers {error.code} {error.reason}")
    raise UserError(f"{url}: the host answers {error.code} {error.reason}")


def _check_sum(url: str, part: Path, sha256: str) -> None:
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(f"its SHA-256 is {found}, {SUMS} says {sha256}")


def read_sums(mirror: str) -> dict[str, str]:
    """{file: SHA-256} of a mirror that says so; UserError where the mirror does not answer."""
    try:
        answer = _opened(f"{mirror}/{SUMS}", 0)
        assert answer is not None  # from byte 0 on there is an answer
        with answer:
            text = answer.read(BLOCK).decode("utf-8", "replace")
    except NotThere:
        return {}
    except (*CUT, Interrupted) as error:
        raise UserError(f"{mirror} does not answer: {error}") from None
    found = re.findall(r"^([0-9a-fA-F]{64}) [ *](\S+)\s*$", text, re.MULTILINE)
    return {name: digest.lower() for digest, name in found}

"""Handling of files that cannot be loaded: reasons, replacement, and limits on their number."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import UnidentifiedImageError

from utils import UserError, log, reason_of

TRIES = 100  # give up after this many bad views in a row: more than a few files must be wrong
SEEN_AT_LEAST = 1000  # minimum number of views from which the share of bad ones is computed

Loaded = TypeVar("Loaded")
Bad = tuple[int, dict[str, str]]  # (number of the view, {path: reason} of its bad files)


class BadView(UserError):
    """A view that cannot be loaded. `files` is {path: reason} of its bad files."""

    def __init__(self, files: Mapping[str, str]) -> None:
        super().__init__(files)
        self.files = dict(files)

    def __str__(self) -> str:
        (path, reason), *others = self.files.items()
        more = f" (and {len(others)} more of this view)" if others else ""
        return f"cannot load {path}: {reason}{more}"


def reason_of_file(error: Exception, path: str | Path) -> str:
    """Return why an image file could not be loaded, without the file's name."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image in a format that is read here"
    return " ".join(reason_of(error).removeprefix(f"{path}: ").split())


def first_good(load: Callable[[int], Loaded], number: int, count: int) -> tuple[Loaded, list[Bad]]:
    """Load view `number` or, if it is bad, the next good one (number + 1, …, modulo `count`).

    Returns what `load` returned, and the bad views that were skipped. Raises UserError after
    `TRIES` bad views in a row.
    """
    bad: list[Bad] = []
    for step in range(min(count, TRIES)):
        candidate = (number + step) % count
        try:
            return load(candidate), bad
        except BadView as error:
            bad.append((candidate, error.files))
    raise UserError(f"{len(bad)} views in a row cannot be loaded; {BadView(bad[0][1])}")


class BadFiles:
    """Collects the bad files of a reality and raises an error if there are too many.

    `files` is {path: reason}; `views` are the numbers of the views with bad files. Each file
    is logged once, and passed to `record` if that is set. `total` is the number of the
    reality's views. `replaced`: whether bad views are replaced by others (only for messages).
    """

    def __init__(self, reality: str, total: int, max_fraction: float, replaced: bool) -> None:
        self.reality, self.total = reality, total
        self.max_fraction, self.replaced = max_fraction, replaced
        self.files: dict[str, str] = {}
        self.views: set[int] = set()
        self.seen = 0  # number of views loaded so far, good and bad
        self.record: Callable[[dict], object] | None = None

    def note(self, bad: Sequence[Bad], seen: int) -> None:
        """Add the bad views among `seen` further views.

        Raises UserError if more than `max_fraction` of the views seen so far are bad. If fewer
        than `SEEN_AT_LEAST` views were seen, that number is used, or `total` if it is smaller.
        """
        self.seen += seen
        consequence = "the next view replaces its own" if self.replaced else "its view is left out"
        for number, files in bad:
            self.views.add(number)
            for path, reason in files.items():
                if path in self.files:
                    continue
                self.files[path] = reason
                if self.max_fraction:
                    log.warning("cannot load %s: %s; %s", path, reason, consequence)
                if self.record:
                    self.record({"bad file": path, "reason": reason, "reality": self.reality})
        allowed = self.max_fraction * min(max(self.seen, SEEN_AT_LEAST), self.total)
        if len(self.views) > allowed:
            if not self.max_fraction:
                raise UserError(str(BadView(self.files)))
            raise UserError(f"{self.summary()}: more than `max_bad_fraction` allows")

    def summary(self) -> str:
        """Return the number of bad views and the list of their files, for messages."""
        files = "; ".join(f"{path}: {reason}" for path, reason in self.files.items())
        return f"{len(self.views)} of {self.total} {self.reality} views cannot be loaded ({files})"

    def state_dict(self) -> dict:
        """Return the state with which a resumed run reports no file twice."""
        return {"files": self.files, "views": sorted(self.views), "seen": self.seen}

    def load_state_dict(self, state: Mapping) -> None:
        """Restore a `state_dict()`."""
        self.files, self.views = dict(state["files"]), set(state["views"])
        self.seen = state["seen"]

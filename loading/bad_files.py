"""Files that cannot be read: what is wrong with them, and how many a run bears."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import UnidentifiedImageError

from utils import UserError, log, reason_of

TRIES = 100  # bad views in a row, after which something else is wrong than a few files
SEEN_AT_LEAST = 1000  # views: the share of bad ones among fewer says little

Loaded = TypeVar("Loaded")
Bad = tuple[int, dict[str, str]]  # a view's number, {path: reason} of its bad files


class BadView(UserError):
    """A view that cannot be loaded. `files` says why, {path: reason}."""

    def __init__(self, files: Mapping[str, str]) -> None:
        super().__init__(files)
        self.files = dict(files)

    def __str__(self) -> str:
        (path, reason), *others = self.files.items()
        more = f" ({len(others)} more of its view too)" if others else ""
        return f"cannot load {path}: {reason}{more}"


def reason_of_file(error: Exception, path: str | Path) -> str:
    """What is wrong with an image file, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image in a format that is read here"
    return " ".join(reason_of(error).removeprefix(f"{path}: ").split())


def first_good(load: Callable[[int], Loaded], number: int, count: int) -> tuple[Loaded, list[Bad]]:
    """What `load` gives for the first of number, number + 1, … (modulo `count`) that is good.

    Beside it the bad ones before it. Raises UserError where a hundred in a row are bad.
    """
    bad: list[Bad] = []
    for step in range(min(count, TRIES)):
        tried = (number + step) % count
        try:
            return load(tried), bad
        except BadView as error:
            bad.append((tried, error.files))
    raise UserError(f"{len(bad)} views in a row cannot be loaded; {BadView(bad[0][1])}")


class BadFiles:
    """The bad files that a reality has met, and when there are too many.

    `files` is {path: reason} and `views` the numbers of the views they belong to. Each is
    logged once, and given to `record` if that is set. `total` is the number of the
    reality's views; `replaced` tells whether a bad view is replaced by another one.
    """

    def __init__(self, reality: str, total: int, max_fraction: float, replaced: bool) -> None:
        self.reality, self.total = reality, total
        self.max_fraction, self.replaced = max_fraction, replaced
        self.files: dict[str, str] = {}
        self.views: set[int] = set()
        self.seen = 0  # views, good and bad
        self.record: Callable[[dict], object] | None = None

    def note(self, bad: Sequence[Bad], seen: int) -> None:
        """Take in the bad ones of `seen` views.

        Raises UserError where more than `max_fraction` of the views seen so far are bad;
        these count as 1000 at least, or as all there are.
        """
        self.seen += seen
        fate = "the next view replaces its own" if self.replaced else "its view is left out"
        for number, files in bad:
            self.views.add(number)
            for path, reason in files.items():
                if path in self.files:
                    continue
                self.files[path] = reason
                if self.max_fraction:
                    log.warning("cannot load %s: %s; %s", path, reason, fate)
                if self.record:
                    self.record({"bad file": path, "reason": reason, "reality": self.reality})
        allowed = self.max_fraction * min(max(self.seen, SEEN_AT_LEAST), self.total)
        if len(self.views) > allowed:
            if not self.max_fraction:
                raise UserError(str(BadView(self.files)))
            raise UserError(f"{self.summary()}: more than `max_bad_fraction` allows")

    def summary(self) -> str:
        """How many views are bad, and their files by name."""
        files = "; ".join(f"{path}: {reason}" for path, reason in self.files.items())
        return f"{len(self.views)} of {self.total} {self.reality} views cannot be loaded ({files})"

    def state_dict(self) -> dict:
        """What a resumed run needs, so that it reports nothing twice."""
        return {"files": self.files, "views": sorted(self.views), "seen": self.seen}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from `state_dict()`."""
        self.files, self.views = dict(state["files"]), set(state["views"])
        self.seen = state["seen"]

"""Run every shell command of the documents, in order, in a fresh clone, on the rooms.

python -m tests.docs_walk

Commands are the indented blocks that begin with one of `FIRST_WORDS`. What cannot run here is
listed with its reason (`SKIPPED`), and so is what is cut short (`SHORTENED`). A complete
Python file of a document (its first line is `# name.py`) is written into the clone.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flags import command_line
from utils import ROOT

DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in
                                                     (ROOT / "docs").glob("*.md"))]  # fmt: skip
FIRST_WORDS = (
    r"(make|python|torchrun|pip|uv|docker|visdom|source|conda|XTC_\w+=\S*|\.venv/\S+|tools/\S+)"
    r"( |$)"
)

SKIPPED = [  # (what the command holds, why it does not run here)
    (r"^docker ", "needs a Docker engine"),
    (r"/data/", "needs data that are not here"),
    (
        r"^XTC_MIRROR|^tools/download|scripts\.download|omnidata|taskonomy\b",
        "needs a publisher's files, or a mirror of them",
    ),
    (r"^(pip install|conda|uv sync)", "another way to install what `make` has installed"),
    (r"--video|scripts\.ken_burns", "needs a video, or the packages of the extra `web`"),
    (r"\.onnx", "needs the packages of the extra `export`"),
    (r"^(visdom|\.venv/bin/visdom|make demo|python -m scripts\.web)", "a server: it does not end"),
    (r"\b[A-Z]{4,}\b(?!=)", "a pattern: its capitals stand for names and numbers"),
    (r"^make (test-all|check|docs-test)", "holds `make test`, which runs"),
]
TRAINER = r"^(python|torchrun .*?) (-m train|-m scripts\.train_edges|my_\w+\.py) (?!--help)"
SHORTENED = [  # (what the command holds, the flags that cut it short)
    (r"scripts\.reproduce", "--dry"),
    (TRAINER, "--max-epochs 1 --steps-per-epoch 5 --batch-size 8"),
]


class Command(NamedTuple):
    document: str
    text: str

    @property
    def reason(self) -> str:
        """Why it is skipped; "" where it is not."""
        return next((why for what, why in SKIPPED if re.search(what, self.text)), "")

    @property
    def run(self) -> str:
        """What is run: the text, and the flags that cut it short."""
        flags = [more for what, more in SHORTENED if re.search(what, self.text)]
        return " ".join([self.text, *flags])


def commands_of(document: str) -> Iterator[Command]:
    """The commands of a document, lines ending in a backslash joined, comments taken off."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.M | re.S)
    for block in re.findall(r"(?<=\n\n)(?: {4}.*\n)+", text):
        block = re.sub(r"\\\n\s*", "", block)
        lines = [re.sub(r"\s+#.*", "", line).strip() for line in block.splitlines()]
        if re.match(FIRST_WORDS, lines[0]):
            yield from (Command(document, re.sub(" +", " ", line)) for line in lines if line)


def write_files(document: str, folder: Path) -> None:
    """The document's complete Python files."""
    text = (ROOT / document).read_text()
    for name, code in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", text, re.M | re.S):
        (folder / name).write_text(code)


def main(*, only: str | None = None, dry: bool = False) -> None:
    """Run every shell command of the documents in a fresh clone, and say how long each took.

    The clone holds what is committed. Exit status 1 where a command fails.

    Example: python -m tests.docs_walk --only scripts

    Args:
        only: run only commands that hold this regular expression.
        dry: list the commands, what is skipped and what is cut short, and stop.
    """
    commands = [c for document in DOCUMENTS for c in commands_of(document)]
    commands = [c for c in commands if re.search(only or "", c.text)]
    failed, start = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="docs-walk-") as folder:
        clone = Path(folder) / "clone"
        if not dry:
            subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
            for document in DOCUMENTS:
                write_files(document, clone)
        for command in dict.fromkeys(commands):
            if command.reason:
                print(f"skipped           {command.text}  [{command.reason}]", flush=True)
            elif dry:
                print(f"would run         {command.run}")
            else:
                failed += not _runs(command, clone)
    if not dry:
        print(f"total {time.monotonic() - start:.0f} s, {failed} failed")
    sys.exit(1 if failed else 0)


def _runs(command: Command, clone: Path) -> bool:
    """Run one command in the clone, its environment active where it is there already."""
    activate = "if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi; "
    start = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", activate + command.run], cwd=clone, capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    good = done.returncode == 0
    took = f"{time.monotonic() - start:.0f} s"
    print(f"{'ok' if good else 'FAILED':<8}{took:>7}   {command.run}  [{command.document}]")
    if not good:
        print("\n".join((done.stdout + done.stderr).splitlines()[-12:]))
    sys.stdout.flush()
    return good


if __name__ == "__main__":
    command_line(main)

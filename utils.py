"""The command line, the job, seeds: what every program of the project shares."""

import difflib
import inspect
import os
import random
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import fire
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent


class UserError(Exception):
    """Something the user can mend: shown as one sentence, exit status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"`, or nothing where no known name resembles `name`."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


# ---- command line -------------------------------------------------------------------


def command_line(main: Callable) -> None:
    """Run `main` with the flags of this process, and exit with its status.

    Python Fire reads the flags; this adds what it leaves out: an unknown flag is an
    error that names the nearest known one *before* anything runs, values are checked
    against the annotations of `main`, a `UserError` becomes one line and status 2, and
    --help is the docstring. Keyword-only parameters of `main` are flags, the others words.
    """
    arguments = sys.argv[1:]
    try:
        if {"--help", "-h"} & set(arguments):
            spec = sys.modules["__main__"].__spec__  # None where a file was run
            print(help_text(main, f"-m {spec.name}" if spec else Path(sys.argv[0]).name))
            return
        _check_words(main, arguments)
        fire.Fire(_checked(main), command=arguments, serialize=lambda result: None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def help_text(main: Callable, program: str) -> str:
    """What --help prints: the docstring of `main`, its "Args:" as a list of words and flags.

    A flag's default stands behind its text unless that names one.
    """
    description, _, arguments = (inspect.getdoc(main) or "").partition("\nArgs:\n")
    entries = re.split(r"^    (?=\w+: )", arguments, flags=re.MULTILINE)[1:]
    texts = {name: " ".join(t.split()) for name, t in (e.split(": ", 1) for e in entries)}
    words, flags = [], []
    for name, parameter in inspect.signature(main).parameters.items():
        default, text = parameter.default, texts.get(name, "")
        if default is parameter.empty:
            text = f"{text.removesuffix('.')} (needed)."
        elif default is not None and default is not False and "default" not in text:
            text = f"{text.removesuffix('.')} (default: {default})."
        if parameter.kind is not parameter.KEYWORD_ONLY:
            words.append((name, text))
        else:
            flags.append((f"--{name.replace('_', '-')}{_value_name(parameter)}", text))
    usage = " ".join(["usage: python", program, *(f"[{word}]" for word, _ in words), "[flags]"])
    lines = [
        textwrap.fill(text, 98, initial_indent=f"  {head:<26}", subsequent_indent=" " * 28)
        for head, text in words + flags
    ]
    return "\n".join([usage, "", description.rstrip(), "", *lines])


def _value_name(parameter: inspect.Parameter) -> str:
    """How help calls the value of a flag: " N" for a number, else by the flag's last word."""
    kinds = str(parameter.annotation)
    if isinstance(parameter.default, bool):
        return " [VALUE]" if "str" in kinds else ""
    number = "int" in kinds or "float" in kinds
    return " N" if number else f" {parameter.name.split('_')[-1].upper()}"


def _check_words(main: Callable, arguments: list[str]) -> None:
    parameters = inspect.signature(main).parameters
    flags = {"--" + name.replace("_", "-"): p for name, p in parameters.items()}
    words = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    needed = {flag for flag, p in flags.items() if p.default is p.empty}
    queue = list(arguments)
    while queue:
        token = queue.pop(0)
        short = [flag for flag in flags if token.partition("=")[0] == flag[1:3]]
        if len(short) == 1:  # Fire takes a letter for the one flag that begins with it
            token = short[0] + token[2:]
        if not token.startswith("--"):
            if not words:
                raise UserError(f"unexpected word {token!r}: the flags are {', '.join(flags)}")
            needed.discard("--" + words.pop(0).name.replace("_", "-"))
            continue
        flag, equals, _ = token.partition("=")
        flag = flag.replace("_", "-")
        if flag not in flags:
            raise UserError(f"unknown flag {flag}{nearest(flag, flags)} (--help lists the flags)")
        needed.discard(flag)
        if isinstance(flags[flag].default, bool):
            optional = "str" in str(flags[flag].annotation)  # such a switch may have a value
            if queue and (queue[0] in ("True", "False") or optional and queue[0][:2] != "--"):
                queue.pop(0)
        elif not equals and (not queue or queue.pop(0).startswith("--")):
            raise UserError(f"{flag} needs a value")
    for flag, parameter in flags.items():
        if flag in needed:
            name = flag if parameter.kind is parameter.KEYWORD_ONLY else parameter.name
            raise UserError(f"{name} is needed (--help says more)")


def _checked(main: Callable) -> Callable:
    """`main` behind a check of each value against its annotation."""
    signature = inspect.signature(main)

    def run(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            bound.arguments[name] = _converted(signature.parameters[name], value)
        return main(*bound.args, **bound.kwargs)

    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__doc__ = main.__doc__
    run.__name__ = Path(sys.argv[0]).stem
    return run


def _converted(parameter: inspect.Parameter, value):
    kinds = str(parameter.annotation)
    flag = "--" + parameter.name.replace("_", "-")
    if value is None or value == parameter.default:
        return value
    if "bool | str" in kinds:
        return value if isinstance(value, bool) else str(value)
    if "list" in kinds:
        if isinstance(value, str):
            value = value.split(",")
        return [str(v) for v in value] if isinstance(value, (tuple, list)) else [str(value)]
    if "str" in kinds:
        return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if "float" in kinds:
        if not number:
            raise UserError(f"{flag} takes a number, not {value!r}")
        return float(value)
    if "int" in kinds:
        if not number or value != int(value):
            raise UserError(f"{flag} takes a whole number, not {value!r}")
        return int(value)
    if not isinstance(value, bool):
        raise UserError(f"{flag} is a switch and takes no value, not {value!r}")
    return value


# ---- job ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """The name of the job (Visdom's environment too) and the folder its data stand in."""

    name: str
    base_dir: Path

    @property
    def data_dir(self) -> Path:
        return self.base_dir / "data"

    @property
    def rooms_dir(self) -> Path:
        return self.base_dir / "data_rooms"

    @property
    def models_dir(self) -> Path:
        return self.base_dir / "models"

    @property
    def results_dir(self) -> Path:
        return self.base_dir / "results"


def read_job(path: str | Path = ROOT / "config" / "jobinfo.txt") -> Job:
    """The job of `config/jobinfo.txt`: `name, base_dir` or the published `name, 0, base_dir`.

    A relative base folder is relative to the current folder. The published middle field
    (a resume number that the published code reads and never uses) is ignored here too.
    """
    try:
        fields = [field.strip() for field in Path(path).read_text().strip().split(",")]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"cannot read {path}: {reason}") from None
    if len(fields) not in (2, 3) or not all(fields):
        raise UserError(f"{path} should hold 'name, base_dir', not {','.join(fields)!r}")
    try:
        return Job(fields[0], Path(fields[-1]).expanduser())
    except RuntimeError:
        raise UserError(f"{path} names {fields[-1]}, and there is no such user") from None


# ---- seeds and files ----------------------------------------------------------------


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name in the folder of `path`, then rename it there.

    A reader sees the old file or the new one, never half of either, also after a power
    cut: the file is on the disk before it gets its name. Raises UserError where that is
    impossible.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        try:
            write(Path(name))
            os.chmod(name, 0o644)
            _flush(Path(name))
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _flush(path: Path) -> None:
    """Have what was written to the file reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

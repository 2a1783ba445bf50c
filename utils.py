"""What every program shares: the command line, errors, the log, the job, seeds."""

import difflib
import inspect
import logging
import math
import random
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import fire
import numpy as np
import torch
from fire.decorators import SetParseFns
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent

# What a library has to say. A program's command line prints it (info on standard output,
# warnings and errors on standard error); elsewhere Python's logging decides.
log = logging.getLogger("xtconsistency")

Item = TypeVar("Item")


# ---- errors -------------------------------------------------------------------------


class UserError(ValueError):
    """Something the user can mend: on the command line one sentence, exit status 2.

    A parameter's name stands in backticks (`image_size`), which the command line shows as
    the program's flag (--image-size).
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"`, or nothing where no known name resembles `name`."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def check_one_of(parameter: str, value: str, known: Sequence[str]) -> None:
    """Raise UserError where `value` is none of the known values of a parameter."""
    if value not in known:
        raise UserError(
            f"`{parameter}` is {' or '.join(known)}, not {value}{nearest(value, known)}"
        )


def check_positive(**values: float | None) -> None:
    """Raise UserError where a parameter's value is 0 or less; None stands for its default."""
    for name, value in values.items():
        if value is not None and value <= 0:
            raise UserError(f"`{name}` has to be more than 0, not {value}")


def reason_of(error: BaseException) -> str:
    """Why it was raised, in one line without the file's name: for the end of a sentence."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0].strip() if text.strip() else type(error).__name__


# ---- the command line ---------------------------------------------------------------


def command_line(main: Callable) -> None:
    """Run `main` with the flags of this process, and exit with its status.

    Python Fire reads the flags; this adds what it leaves out: an unknown flag is an
    error that names the nearest known one *before* anything runs, values are converted by
    the type hints of `main` (text stays as it was typed), a `UserError` becomes one line
    and status 2, and --help is the docstring. Keyword-only parameters of `main` are flags,
    the others words.
    """
    arguments = sys.argv[1:]
    try:
        if {"--help", "-h"} & set(arguments):
            spec = sys.modules["__main__"].__spec__  # None where a file was run
            print(help_text(main, f"-m {spec.name}" if spec else Path(sys.argv[0]).name))
            return
        _check_words(main, arguments)
        with logged_to_console(main):
            fire.Fire(_converting(main), command=arguments, serialize=lambda result: None)
    except UserError as error:
        print(f"error: {_with_flags(str(error), main)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def folding_flags(main: Callable) -> Callable:
    """Decorates a program's `main` whose keyword parameters are dataclasses of options.

    The result takes the dataclasses' fields as flags of their own, flat, and folds them
    into the dataclasses. Help shows each dataclass's flags together, under the first line
    of its docstring; their texts stand in its "Args:".
    """
    signature, hints = inspect.signature(main), typing.get_type_hints(main)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    flat: list[inspect.Parameter] = []
    described, entries = (inspect.getdoc(main) or "").partition("\nArgs:\n")[::2]
    headings: dict[str, str] = {}
    for name, parameter in signature.parameters.items():
        if name not in groups:
            flat.append(parameter.replace(annotation=hints[name]))
            continue
        title, _, text = (inspect.getdoc(groups[name]) or "").partition("\n")
        entries += "\n" + text.partition("Args:\n")[2]
        types = typing.get_type_hints(groups[name])
        headings[fields(groups[name])[0].name] = title.removesuffix(".")
        flat += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default,
                              annotation=types[f.name])
            for f in fields(groups[name])
        ]  # fmt: skip
    whole = signature.replace(parameters=flat)

    def folded(*args, **kwargs):
        bound = whole.bind(*args, **kwargs)
        bound.apply_defaults()
        values = dict(bound.arguments)
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        return main(**values)

    folded.__signature__ = whole  # type: ignore[attr-defined]
    folded.__annotations__ = {p.name: p.annotation for p in flat}
    folded.__doc__ = f"{described.rstrip()}\n\nArgs:\n{entries}"
    folded.__name__, folded.__module__ = main.__name__, main.__module__
    folded.headings = headings  # type: ignore[attr-defined]
    return folded


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _with_flags(text: str, main: Callable) -> str:
    """The text with the parameters of `main` that stand in backticks as its flags."""
    known = inspect.signature(main).parameters
    return re.sub(r"`(\w+)`", lambda m: _flag(m[1]) if m[1] in known else m[0], text)


class _Console(logging.Handler):
    """Prints the log's lines so that progress bars stay whole."""

    def __init__(self, main: Callable) -> None:
        super().__init__()
        self._main = main

    def emit(self, record: logging.LogRecord) -> None:
        text = _with_flags(record.getMessage(), self._main)
        warning = record.levelno == logging.WARNING
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        tqdm.write(f"warning: {text}" if warning else text, file=stream)


@contextmanager
def logged_to_console(main: Callable) -> Iterator[None]:
    """Print the log as `main`'s command line does, and nowhere else, as long as the block runs."""
    handlers, level = log.handlers, log.level
    log.handlers = [_Console(main)]
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.handlers = handlers
        log.setLevel(level)


def help_text(main: Callable, program: str) -> str:
    """What --help prints: the docstring of `main`, its "Args:" as a list of words and flags.

    A flag's default stands behind its text unless that names one.
    """
    description, _, arguments = (inspect.getdoc(main) or "").partition("\nArgs:\n")
    entries = re.split(r"^    (?=\w+: )", arguments, flags=re.MULTILINE)[1:]
    texts = {name: " ".join(t.split()) for name, t in (e.split(": ", 1) for e in entries)}
    words, flags = [], []
    hints = _hints(main)
    for name, parameter in inspect.signature(main).parameters.items():
        default, text = parameter.default, texts.get(name, "")
        if default is parameter.empty:
            text = f"{text.removesuffix('.')} (needed)."
        elif default is not None and default is not False and "default" not in text:
            text = f"{text.removesuffix('.')} (default: {default})."
        if parameter.kind is not parameter.KEYWORD_ONLY:
            words.append((name, text))
        else:
            flags.append((f"{_flag(name)}{_value_name(name, hints[name])}", text))
    usage = " ".join(["usage: python", program, *(f"[{word}]" for word, _ in words), "[flags]"])
    headings = {_flag(name): title for name, title in getattr(main, "headings", {}).items()}
    lines = []
    for head, text in words + flags:
        if head.split(" ")[0] in headings:
            lines += ["", f"{headings[head.split(' ')[0]]}:"]
        lines.append(
            textwrap.fill(text, 98, initial_indent=f"  {head:<26}", subsequent_indent=" " * 28)
        )
    return "\n".join([usage, "", description.rstrip(), "", *lines])


def _hints(main: Callable) -> dict[str, set[type]]:
    """The types that each parameter takes, beside None: {name: {bool, str, …}}."""
    found = {}
    for name, hint in typing.get_type_hints(main).items():
        kinds = typing.get_args(hint) if typing.get_origin(hint) is not list else (list,)
        found[name] = {typing.get_origin(k) or k for k in kinds or (hint,)} - {type(None)}
    return found


def _value_name(name: str, kinds: set[type]) -> str:
    """How help calls the value of a flag: " N" for a number, else by the flag's last word."""
    if bool in kinds:
        return " [VALUE]" if str in kinds else ""
    return " N" if kinds & {int, float} else f" {name.split('_')[-1].upper()}"


def _check_words(main: Callable, arguments: Sequence[str]) -> None:
    """Raise UserError for words and flags that `main` does not take, and for lacking ones."""
    hints, parameters = _hints(main), inspect.signature(main).parameters
    flags = {_flag(name): p for name, p in parameters.items()}
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
            needed.discard(_flag(words.pop(0).name))
            continue
        flag, equals, _ = token.partition("=")
        flag = flag.replace("_", "-")
        if flag not in flags:
            raise UserError(f"unknown flag {flag}{nearest(flag, flags)} (--help lists the flags)")
        needed.discard(flag)
        kinds = hints[flags[flag].name]
        if bool in kinds:
            optional = str in kinds  # such a switch may have a value
            if queue and (queue[0] in ("True", "False") or optional and queue[0][:2] != "--"):
                queue.pop(0)
        elif not equals and (not queue or queue.pop(0).startswith("--")):
            raise UserError(f"{flag} needs a value")
    for flag, parameter in flags.items():
        if flag in needed:
            name = flag if parameter.kind is parameter.KEYWORD_ONLY else parameter.name
            raise UserError(f"{name} is needed (--help says more)")


def _converting(main: Callable) -> Callable:
    """`main` for Fire: it gets every value as typed, and converts it by the type hints."""
    signature, hints = inspect.signature(main), _hints(main)

    def run(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        for name, text in bound.arguments.items():
            bound.arguments[name] = _converted(name, hints[name], text)
        return main(*bound.args, **bound.kwargs)

    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__doc__ = main.__doc__
    run.__name__ = Path(sys.argv[0]).stem
    return SetParseFns(**dict.fromkeys(signature.parameters, str))(run)


def _converted(name: str, kinds: set[type], text: str):
    """The value that a flag's text stands for; UserError where it is none of its types."""
    if bool in kinds and text in ("True", "False"):
        return text == "True"
    if list in kinds:
        return text.split(",")
    if str in kinds:
        return text
    if bool in kinds:
        raise UserError(f"{_flag(name)} is a switch and takes no value, not {text!r}")
    whole = re.fullmatch(r"[+-]?\d{1,300}", text) is not None
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = math.nan
    if float in kinds:
        if not math.isfinite(number):
            raise UserError(f"{_flag(name)} takes a number, not {text!r}")
        return float(number)
    if not whole and not float(number).is_integer():
        raise UserError(f"{_flag(name)} takes a whole number, not {text!r}")
    return int(number)


# ---- the job ------------------------------------------------------------------------


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
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise UserError(f"cannot read {path}: {reason}") from None
    if len(fields) not in (2, 3) or not all(fields):
        raise UserError(f"{path} should hold 'name, base_dir', not {','.join(fields)!r}")
    try:
        return Job(fields[0], Path(fields[-1]).expanduser())
    except RuntimeError:
        raise UserError(f"{path} names {fields[-1]}, and there is no such user") from None


# ---- seeds, choices -----------------------------------------------------------------


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def evenly_spaced(items: Sequence[Item], count: int | None) -> list[Item]:
    """At most `count` of the items, evenly spaced; all of them where it is None."""
    count = min(count or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]

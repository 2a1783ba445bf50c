"""Command lines: the flags of a program are the parameters of its function `main`."""

import errno
import inspect
import io
import logging
import math
import os
import re
import signal
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from utils import UserError, log, nearest, reason_of

try:
    import fire
    from fire.decorators import SetParseFns
except ImportError:  # e.g. on a GPU machine without network; then `_texts` reads the arguments
    fire = None

LARGEST = 2**62  # absolute value of whole numbers in flags


def command_line(main: Callable) -> None:
    """Run `main` with this process's command-line arguments, and exit with its status.

    Keyword-only parameters of `main` are flags; the others are positional arguments. Python
    Fire parses the arguments; where it is not installed, `_texts` reads them in the same way. This
    function adds:

    - An unknown flag is an error that suggests the closest known flag, before `main` runs.
    - Values are converted according to the type hints of `main`. Strings are not changed.
    - A `UserError`, a lack of memory and a system error that concerns the machine (a full disk,
      …) are printed as one line, with exit status 2.
    - If nobody reads the output any more (`| head -1`), the program ends with status 141.
    - Characters that the terminal cannot show are printed as question marks.
    - --help prints the docstring of `main`.
    """
    arguments = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # print what the terminal can show
            stream.reconfigure(errors="replace")
    try:
        _run(main, arguments)
        sys.stdout.flush()  # now, while a full disk can still be reported
    except UserError as error:
        _end(f"error: {_with_flags(str(error), main)}", 2)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BrokenPipeError:
        _end("", 128 + signal.SIGPIPE)  # as if the signal had ended it: nobody reads on
    except (MemoryError, torch.OutOfMemoryError) as error:
        _end(f"error: not enough memory: {reason_of(error)}", 2)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # from the allocator of the CPU
            raise
        _end(f"error: not enough memory: {reason_of(error)}", 2)
    except OSError as error:
        # What a library could not foresee, e.g. a full disk or a name that is too long
        if error.errno not in ENVIRONMENT:
            raise
        place = f" {error.filename}" if error.filename else ""
        _end(f"error: cannot read or write{place}: {reason_of(error)}", 2)


# System errors that concern the machine or the user's files, not this program
ENVIRONMENT = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG,
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ELOOP, errno.ENOTDIR,
    errno.ENXIO, errno.EFBIG, errno.ESTALE,
}  # fmt: skip


def _run(main: Callable, arguments: Sequence[str]) -> None:
    """Print the help, or check the arguments and call `main` with them."""
    if {"--help", "-h"} & set(arguments):
        spec = sys.modules["__main__"].__spec__  # None where a file was run
        print(help_text(main, f"-m {spec.name}" if spec else Path(sys.argv[0]).name))
        return
    arguments = [_own_spelling(main, argument) for argument in arguments]
    arguments = _check_words(main, arguments)
    with logged_to_console(main):
        if fire is None:
            _converting(main)(**_texts(main, arguments))
            return
        parsed_as_text = SetParseFns(**dict.fromkeys(inspect.signature(main).parameters, str))
        fire.Fire(
            parsed_as_text(_converting(main)),
            command=list(arguments), serialize=lambda result: None,
        )  # fmt: skip


def _own_spelling(main: Callable, argument: str) -> str:
    """Return the argument with the flag's own spelling in place of an alias."""
    flag, equals, value = argument.partition("=")
    for alias, name in getattr(main, "aliases", {}).items():
        if flag.replace("_", "-") == _flag(alias):
            return _flag(name) + equals + value
    return argument


def _end(sentence: str, status: int) -> NoReturn:
    """Print a sentence to standard error, if there is one, and exit with the status."""
    with suppress(OSError):
        if sentence:
            print(sentence, file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # it cannot be written: keep Python from trying again at its end
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def also_called(**aliases: str) -> Callable[[Callable], Callable]:
    """Decorate a `main` whose flags have other spellings too, {spelling: parameter}.

    Published spellings, and those of earlier versions, keep working on the command line.
    """

    def named(main: Callable) -> Callable:
        main.aliases = aliases  # type: ignore[attr-defined]
        return main

    return named


def folding_flags(main: Callable) -> Callable:
    """Decorate a `main` that has parameters whose types are dataclasses of options.

    The decorated function takes every dataclass field as a separate flag, and passes
    dataclass instances to `main`. --help groups the flags by dataclass, below the first line
    of its docstring. The help texts come from the "Args:" section of the same docstring.
    """
    signature, hints = inspect.signature(main), typing.get_type_hints(main)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    flat_parameters: list[inspect.Parameter] = []
    description, argument_docs = (inspect.getdoc(main) or "").partition("\nArgs:\n")[::2]
    headings: dict[str, str] = {}
    for name, parameter in signature.parameters.items():
        if name not in groups:
            flat_parameters.append(parameter.replace(annotation=hints[name]))
            continue
        title, _, text = (inspect.getdoc(groups[name]) or "").partition("\n")
        argument_docs += "\n" + text.partition("Args:\n")[2]
        types = typing.get_type_hints(groups[name])
        headings[fields(groups[name])[0].name] = title.removesuffix(".")
        flat_parameters += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default,
                              annotation=types[f.name])
            for f in fields(groups[name])
        ]  # fmt: skip
    flat_signature = signature.replace(parameters=flat_parameters)

    def folded(*args, **kwargs):
        arguments = flat_signature.bind(*args, **kwargs)
        arguments.apply_defaults()
        values = dict(arguments.arguments)
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        return main(**values)

    folded.__signature__ = flat_signature  # type: ignore[attr-defined]
    folded.__annotations__ = {p.name: p.annotation for p in flat_parameters}
    folded.__doc__ = f"{description.rstrip()}\n\nArgs:\n{argument_docs}"
    folded.__name__, folded.__module__ = main.__name__, main.__module__
    folded.headings = headings  # type: ignore[attr-defined]
    return folded


def as_arguments(flags: Mapping[str, object]) -> list[str]:
    """Return command-line arguments for flags, {name: value}; None and False are left out."""
    arguments = []
    for name, value in flags.items():
        if value is True:
            arguments.append(_flag(name))
        elif value is not None and value is not False:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            arguments.append(f"{_flag(name)}={text}")
    return arguments


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _with_flags(text: str, main: Callable) -> str:
    """Replace parameter names of `main` in backticks by the corresponding flags."""
    known = inspect.signature(main).parameters
    return re.sub(r"`(\w+)`", lambda m: _flag(m[1]) if m[1] in known else m[0], text)


class _Console(logging.Handler):
    """Print log records without breaking progress bars."""

    def __init__(self, main: Callable) -> None:
        super().__init__()
        self._main = main

    def emit(self, record: logging.LogRecord) -> None:
        text = _with_flags(record.getMessage(), self._main)
        warning = record.levelno == logging.WARNING
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        tqdm.write(f"warning: {text}" if warning else text, file=stream)
        stream.flush()  # so that output in a file shows how far a long program has got


@contextmanager
def logged_to_console(main: Callable) -> Iterator[None]:
    """Within the block, print the log as the command line of `main` does, and nowhere else."""
    handlers, level = log.handlers, log.level
    log.handlers = [_Console(main)]
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.handlers = handlers
        log.setLevel(level)


def help_text(main: Callable, program: str) -> str:
    """Return the text of --help: the docstring of `main` with "Args:" as a list of arguments.

    Parameter names in backticks become flags. A flag's default value is appended unless its text
    already contains the word "default".
    """
    description, _, arguments = (inspect.getdoc(main) or "").partition("\nArgs:\n")
    entries = re.split(r"^    (?=\w+: )", arguments, flags=re.MULTILINE)[1:]
    texts = {name: " ".join(t.split()) for name, t in (e.split(": ", 1) for e in entries)}
    words, flags = [], []
    hints = accepted(main)
    for name, parameter in inspect.signature(main).parameters.items():
        default, text = parameter.default, texts.get(name, "")
        if default is parameter.empty:
            text = f"{text.removesuffix('.')} (needed)."
        elif default is not None and default is not False and "default" not in text:
            text = f"{text.removesuffix('.')} (default: {default})."
        also = [_flag(a) for a, own in getattr(main, "aliases", {}).items() if own == name]
        text += f" Also {' or '.join(also)}." if also else ""
        if parameter.kind is not parameter.KEYWORD_ONLY:
            words.append((f"{name} …" if list in hints[name] else name, text))
        else:
            flags.append((f"{_flag(name)}{_value_name(name, hints[name])}", text))
    usage = " ".join(["usage: python", program, *(f"[{word}]" for word, _ in words), "[flags]"])
    headings = {_flag(name): title for name, title in getattr(main, "headings", {}).items()}
    lines = []
    for head, text in words + flags:
        if head.split(" ")[0] in headings:
            lines += ["", f"{headings[head.split(' ')[0]]}:"]
        lines.append(
            textwrap.fill(
                text,
                98,
                initial_indent=f"  {head:<26}",
                subsequent_indent=" " * 28,
                break_on_hyphens=False,
            )
        )
    return _with_flags("\n".join([usage, "", description.rstrip(), "", *lines]), main)


def accepted(main: Any) -> dict[str, set[type]]:
    """Return the types that each parameter of a function, or field of a dataclass, accepts.

    None is left out: {name: {bool, str, …}}.
    """
    types_by_name = {}
    for name, hint in typing.get_type_hints(main).items():
        members = typing.get_args(hint) if typing.get_origin(hint) is not list else (list,)
        types_by_name[name] = {
            typing.get_origin(member) or member for member in members or (hint,)
        } - {type(None)}
    return types_by_name


def _value_name(name: str, types: set[type]) -> str:
    """Return the placeholder for a flag's value in --help: " N", or the flag's last word."""
    if bool in types:
        return " [VALUE]" if str in types else ""
    return " N" if types & {int, float} else f" {name.split('_')[-1].upper()}"


def _check_words(main: Callable, arguments: Sequence[str]) -> list[str]:
    """Raise UserError for arguments that `main` does not accept, and for missing ones.

    Returns the arguments. If a positional parameter is a list, it takes all positional words,
    which are joined by commas into one.
    """
    hints, parameters = accepted(main), inspect.signature(main).parameters
    flags = {_flag(name): p for name, p in parameters.items()}
    words = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    missing = {flag for flag, p in flags.items() if p.default is p.empty}
    queue, entries, others = list(arguments), [], []
    while queue:
        token = queue.pop(0)
        others.append(token)
        matches = [flag for flag in flags if token.partition("=")[0] == flag[1:3]]
        if len(matches) == 1:  # Fire accepts -x for the only flag that begins with x
            token = matches[0] + token[2:]
        if not token.startswith("--"):
            if not words:
                raise UserError(f"unexpected word {token!r}: the flags are {', '.join(flags)}")
            missing.discard(_flag(words[0].name))
            if list in hints[words[0].name]:
                entries.append(others.pop())
            else:
                words.pop(0)
            continue
        flag, equals, _ = token.partition("=")
        flag = flag.replace("_", "-")
        if flag not in flags:
            raise UserError(f"unknown flag {flag}{nearest(flag, flags)} (--help lists the flags)")
        missing.discard(flag)
        types = hints[flags[flag].name]
        if bool in types:
            takes_value = str in types  # a switch of type bool | str may have a value
            if queue and (queue[0] in ("True", "False") or takes_value and queue[0][:2] != "--"):
                others.append(queue.pop(0))
        elif not equals:
            if not queue or queue[0].startswith("--"):
                raise UserError(f"{flag} needs a value")
            others.append(queue.pop(0))
    for flag, parameter in flags.items():
        if flag in missing:
            name = flag if parameter.kind is parameter.KEYWORD_ONLY else parameter.name
            raise UserError(f"{name} is needed (--help says more)")
    return [*([",".join(entries)] if entries else []), *others]


def _texts(main: Callable, arguments: Sequence[str]) -> dict[str, str]:
    """Return the text of each parameter, from arguments that `_check_words` has accepted.

    As in Fire, a flag without "=" takes the next word, and a switch is "True" if none follows.
    """
    parameters = inspect.signature(main).parameters
    texts, words, queue = {}, list[str](), list(arguments)
    while queue:
        token = queue.pop(0)
        if not _is_flag(token):
            words.append(token)
            continue
        flag, equals, text = token.partition("=")
        name = flag.lstrip("-").replace("-", "_")
        if flag[1] != "-":  # -x stands for the only flag that begins with x
            (name,) = (p for p in parameters if p[0] == name[0])
        if not equals:
            text = queue.pop(0) if queue and not _is_flag(queue[0]) else "True"
        texts[name] = text
    places = [
        name for name, p in parameters.items()
        if p.kind is not p.KEYWORD_ONLY and name not in texts
    ]  # fmt: skip
    if words[len(places) :]:
        raise UserError(f"unexpected word {words[len(places)]!r} (--help lists the flags)")
    return texts | dict(zip(places, words, strict=False))


def _is_flag(token: str) -> bool:
    return re.match("--|-[a-zA-Z]", token) is not None


def _converting(main: Callable) -> Callable:
    """Wrap `main`: take every value as a string and convert it by the type hints."""
    signature, hints = inspect.signature(main), accepted(main)

    def run(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        for name, text in bound.arguments.items():
            if text is not None:  # fire gives a positional argument that was left out as None
                bound.arguments[name] = _converted(name, hints[name], text)
        return main(*bound.args, **bound.kwargs)

    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__doc__ = main.__doc__
    run.__name__ = Path(sys.argv[0]).stem
    return run


def _converted(name: str, types: set[type], text: str):
    """Convert the text of a flag to one of its types. Raise UserError if that fails."""
    if text == "" and types & {str, list}:
        raise UserError(f"{_flag(name)} needs a value, not an empty one")
    if bool in types and text in ("True", "False"):
        return text == "True"
    if list in types:
        if "" in text.split(","):
            raise UserError(f"{_flag(name)} takes entries between commas, not {text!r}")
        return text.split(",")
    if str in types:
        return text
    if bool in types:
        raise UserError(f"{_flag(name)} is a switch and takes no value, not {text!r}")
    is_integer = re.fullmatch(r"[+-]?\d{1,300}", text) is not None
    try:
        number = int(text) if is_integer else float(text)
    except ValueError:
        number = math.nan
    if float in types:
        if not math.isfinite(number):
            raise UserError(f"{_flag(name)} takes a number, not {text!r}")
        return float(number)
    if not is_integer and not float(number).is_integer():
        raise UserError(f"{_flag(name)} takes a whole number, not {text!r}")
    if abs(number) > LARGEST:
        raise UserError(f"{_flag(name)} takes a whole number up to {LARGEST}, not {text!r}")
    return int(number)

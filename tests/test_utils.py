import errno
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from files import write_atomically
from flags import also_called, command_line, folding_flags, help_text
from utils import ROOT, UserError, duration, log, nearest, read_job

PROGRAMS = [
    f"scripts.{file.stem}"
    for file in sorted((ROOT / "scripts").glob("*.py"))
    if "command_line(main)" in file.read_text()
]


def program(
    word: str | None = None,
    *,
    count: int = 1,
    rate: float | None = None,
    names: list | None = None,
    loud: bool = False,
    path: str | None = None,
) -> None:
    """Print what arrived.

    Args:
        count: how often: again,
            and again.
    """
    if word == "fail":
        raise UserError("told to fail")
    print([word, count, rate, names, loud, path])


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `program` by its command line: (exit status, output, errors)."""

    def run(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["program.py", *arguments])
        status = 0
        try:
            command_line(program)
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out.strip(), printed.err.strip()

    return run


@pytest.mark.parametrize(
    "arguments, printed",
    [
        (["w", "--count", "3", "--rate=2"], "['w', 3, 2.0, None, False, None]"),
        (["--names", "a,b", "--loud"], "[None, 1, None, ['a', 'b'], True, None]"),
        (["--names", "a", "--path", "12"], "[None, 1, None, ['a'], False, '12']"),
        (["-c", "3", "-l"], "[None, 3, None, None, True, None]"),
        (["--rate", "1e-4"], "[None, 1, 0.0001, None, False, None]"),
    ],
)
def test_values_arrive_as_annotated(call, arguments, printed):
    assert call(*arguments) == (0, printed, "")


TEXTS = (
    "run#1", "2024_01_02", "1.10", "1e5", "0x10", "None", "True", "[a]", "{a: 1}", "(1, 2)", "a,b",
    "a b", "'a'", "photo#1.png", "-", "ä", "'", "\\", "1_000",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_as_it_was_typed(call, text):
    """Fire alone would parse it: run#1 as run, 2024_01_02 as a number, 1.10 as 1.1."""
    assert call(f"--path={text}") == (0, str([None, 1, None, None, False, text]), "")
    names = str([None, 1, None, [*text.split(","), "b"], False, None])
    assert call(f"--names={text},b") == (0, names, "")


@pytest.mark.parametrize("text", ["1e999", "nan", "inf", "", "None", "1" * 400, "1;2"])
def test_what_is_no_number_is_refused(call, text):
    for flag in ("count", "rate"):
        status, printed, error = call(f"--{flag}={text}")
        assert (status, printed) == (2, "") and error.startswith(f"error: --{flag} takes a ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["w", "--count", "3", "--rate=2"],
        ["--names", "a,b", "--loud"],
        ["--loud", "--word=w", "--path", "12"],
        ["-c", "3", "-l"],
        ["-p", "x", "--path=-"],
        ["--rate", "-1e-4"],
        ["--count=2", "--count=3"],
        ["--loud", "False"],
        ["--path=a=b", "--names=a,b"],
        ["--count=x"],
        ["--count=1.5"],
        ["--loud=yes"],
        ["--path="],
        ["fail"],
    ],
)
def test_without_fire_the_arguments_are_read_alike(call, monkeypatch, arguments):
    with_fire = call(*arguments)
    monkeypatch.setattr("flags.fire", None)
    assert call(*arguments) == with_fire


def test_without_fire_a_word_too_many_is_refused(call, monkeypatch):
    monkeypatch.setattr("flags.fire", None)
    for arguments in (["one", "two"], ["--word=one", "two"], ["--loud", "two"]):
        status, printed, error = call(*arguments)
        assert (status, printed) == (2, "") and "'two'" in error


@dataclass(frozen=True)
class Fruit:
    """Fruit.

    Args:
        apples: how many apples,
            or none.
        kind: which kind.
    """

    apples: int = 2
    kind: str | None = None


@folding_flags
def shop(word: str | None = None, *, fruit: Fruit, loud: bool = False) -> tuple:
    """Buy.

    Args:
        word: what to say.
        loud: say it loudly.
    """
    if fruit.apples < 0:
        raise UserError(f"`apples` has to be 0 or more, not {fruit.apples} (`other`)")
    print(word, fruit, loud)
    return word, fruit, loud


def test_flags_fold_into_their_owners(call):
    assert shop("x", apples=3) == ("x", Fruit(3), False)
    assert shop(loud=True) == (None, Fruit(), True)
    with pytest.raises(TypeError):
        shop(pears=1)
    text = " ".join(help_text(shop, "shop").split())
    assert "Fruit: --apples N how many apples, or none (default: 2)." in text
    assert "--loud say it loudly." in text


def test_a_librarys_parameters_are_shown_as_flags(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["shop.py", "--apples=-1"])
    with pytest.raises(SystemExit):
        command_line(shop)
    assert capsys.readouterr().err == "error: --apples has to be 0 or more, not -1 (`other`)\n"
    with pytest.raises(ValueError, match="`apples` has to be 0 or more"):
        shop(apples=-1)


def test_the_log_is_printed_by_its_level(monkeypatch, capsys):
    def program() -> None:
        log.info("one `word`")
        log.warning("two")
        log.error("three")

    monkeypatch.setattr(sys, "argv", ["program.py"])
    command_line(program)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("one `word`\n", "warning: two\nthree\n")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--cuont", "3"], "error: unknown flag --cuont; did you mean --count?"),
        (["--count", "x"], "error: --count takes a whole number, not 'x'"),
        (["--count", "1.5"], "error: --count takes a whole number, not '1.5'"),
        (["--rate", "x"], "error: --rate takes a number, not 'x'"),
        (["--count"], "error: --count needs a value"),
        (["--count", "--loud"], "error: --count needs a value"),
        (["--loud=3"], "error: --loud is a switch and takes no value, not '3'"),
        (["one", "two"], "error: unexpected word 'two'"),
        (["fail"], "error: told to fail"),
    ],
)
def test_wrong_words_are_one_sentence_and_status_2(call, arguments, sentence):
    status, printed, error = call(*arguments)
    assert (status, printed, len(error.splitlines())) == (2, "", 1)
    assert error.startswith(sentence)


@pytest.mark.parametrize(
    "arguments, missing", [([], "data_dir"), (["d"], "--to"), (["--to", "x"], "data_dir")]
)
def test_what_is_needed_and_missing_is_named(monkeypatch, capsys, arguments, missing):
    def program(data_dir: str, *, to: str) -> None: ...

    monkeypatch.setattr(sys, "argv", ["program.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        command_line(program)
    assert capsys.readouterr().err.startswith(f"error: {missing} is needed")


def test_help_is_the_docstring(call):
    for words in (["--help"], ["w", "--help"], ["--count", "3", "-h"]):
        status, printed, error = call(*words)
        assert (status, error) == (0, "")
        assert "Print what arrived." in printed and "[word] [flags]" in printed
        flag = printed.split("--count N")[1].split("--rate N")[0]
        assert " ".join(flag.split()) == "how often: again, and again (default: 1)."


@pytest.mark.parametrize("name", ["train", "demo", *PROGRAMS])
def test_every_flag_of_every_program_is_explained(name):
    main = importlib.import_module(name).main
    text = help_text(main, f"-m {name}")
    assert re.search("Example: .*python", text)
    for parameter in inspect.signature(main).parameters.values():
        flag = parameter.name
        if parameter.kind is parameter.KEYWORD_ONLY:
            flag = "--" + flag.replace("_", "-")
        (line,) = re.findall(rf"^  {flag}(?: \[?[A-Z]+\]?)? +(\S.*)$", text, re.MULTILINE)
        assert line


def test_nearest():
    assert nearest("normals", ["normal", "depth"]) == "; did you mean normal?"
    assert nearest("xyz", ["normal"]) == ""


@pytest.mark.parametrize("text", ["name, 0, /base", "name, /base\n"])
def test_job_takes_the_published_form_and_the_short_one(tmp_path, text):
    file = tmp_path / "jobinfo.txt"
    file.write_text(text)
    job = read_job(file)
    assert (job.name, job.models_dir, job.data_dir) == ("name", Path("/base/models"),
                                                        Path("/base/data"))  # fmt: skip


@pytest.mark.parametrize("text", ["name", "a, b, c, d", " , x", ""])
def test_job_says_what_it_should_hold(tmp_path, text):
    file = tmp_path / "jobinfo.txt"
    file.write_text(text)
    with pytest.raises(UserError, match="should hold 'name, base_dir'"):
        read_job(file)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00, x", b"name, ~no-such-user-here/x"])
def test_a_job_that_cannot_be_used_is_named(tmp_path, content):
    file = tmp_path / "jobinfo.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match="jobinfo.txt"):
        read_job(file)


def test_write_atomically_keeps_the_old_file_when_writing_fails(tmp_path):
    file = tmp_path / "a.txt"
    write_atomically(file, lambda p: p.write_text("old"))

    def fail(path):
        path.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(file, fail)
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


# ---- the terminal, the disk, the memory -----------------------------------------------

SPEAKS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from flags import command_line

def main(*, lines: int = 1) -> None:
    '''Say it.'''
    for number in range(lines):
        print("normal → depth – ä", flush=True)

command_line(main)
"""


def spoken(tmp_path, shell: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a shell command in which $SPEAKS prints a line, or --lines N of them."""
    (tmp_path / "speaks.py").write_text(SPEAKS)
    shell = shell.replace("$SPEAKS", shlex.join([sys.executable, str(tmp_path / "speaks.py")]))
    environment = os.environ | environment
    command = ["bash", "-c", f"set -o pipefail; {shell}"]
    return subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_cannot_show_is_a_question_mark(tmp_path, encoding):
    """Published and before: UnicodeEncodeError, e.g. at the table that ends a training."""
    done = spoken(tmp_path, "$SPEAKS", PYTHONIOENCODING=encoding)
    shown = "normal ? depth ? ä".encode(encoding, "replace")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, shown, b"")


def test_a_reader_that_goes_away_ends_the_program_quietly(tmp_path):
    done = spoken(tmp_path, "$SPEAKS --lines 100000 | head -1")
    assert (done.returncode, done.stderr, done.stdout.count(b"\n")) == (141, b"", 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_to_a_full_disk_is_one_sentence(tmp_path):
    done = spoken(tmp_path, "$SPEAKS > /dev/full")
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"error: cannot read or write")


@pytest.mark.parametrize(
    "error, said",
    [
        (MemoryError("12 GB"), "error: not enough memory: 12 GB"),
        (RuntimeError("x: can't allocate memory: 108 bytes"), "error: not enough memory: x: can't"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "error: cannot read or write x"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: cannot read or write: No space"),
    ],
)
def test_what_the_machine_lacks_is_one_sentence(monkeypatch, capsys, error, said):
    def program() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["program.py"])
    with pytest.raises(SystemExit, match="2"):
        command_line(program)
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EBADF, "a bug")])
def test_a_bug_keeps_its_traceback(monkeypatch, error):
    def program() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["program.py"])
    with pytest.raises(type(error), match="a bug"):
        command_line(program)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--path="], "error: --path needs a value, not an empty one"),
        (["--names=a,,b"], "error: --names takes entries between commas"),
        (["--count", "1e30"], "error: --count takes a whole number up to"),
    ],
)
def test_values_that_no_flag_has_a_use_for(call, arguments, said):
    status, _, error = call(*arguments)
    assert status == 2 and error.startswith(said)


def test_the_umask_is_respected(tmp_path):
    """Published: as the system; before: readable by everybody, whatever the umask."""
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "private", lambda p: p.write_text(""))
        os.umask(0o002)
        write_atomically(tmp_path / "shared", lambda p: p.write_text(""))
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()}
    assert modes == {"private": 0o600, "shared": 0o664}


def test_a_relative_base_folder_is_below_the_project(tmp_path, monkeypatch):
    """Programs started elsewhere write nothing there."""
    file = tmp_path / "jobinfo.txt"
    file.write_text("name, work")
    monkeypatch.chdir(ROOT)
    assert read_job(file).results_dir == Path("work/results")
    monkeypatch.chdir(tmp_path)
    assert read_job(file).results_dir == ROOT / "work" / "results"


@pytest.mark.parametrize(
    "seconds, text",
    [(4.4, "4 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h 0 min"), (7800, "2 h 10 min"),
     (86400 * 9, "9 days")],
)  # fmt: skip
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_published_spellings_of_flags_keep_working(monkeypatch, capsys):
    @also_called(save_dir="output_dir", w="output_dir")
    def program(*, output_dir: str | None = None) -> None:
        """Print the folder.

        Args:
            output_dir: the folder.
        """
        print(output_dir)

    for argument in ("--output-dir=x", "--save_dir=x", "--save-dir=x", "--w=x"):
        monkeypatch.setattr(sys, "argv", ["program.py", argument])
        command_line(program)
        assert capsys.readouterr().out == "x\n"
    assert "the folder. Also --save-dir or --w." in help_text(program, "x")
    program.__doc__ = program.__doc__.replace("the folder", "word " * 12 + "the folder")
    assert "--save-dir" in help_text(program, "x")  # a flag is not broken at its hyphen
    monkeypatch.setattr(sys, "argv", ["program.py", "--safe-dir=x"])
    with pytest.raises(SystemExit):
        command_line(program)
    assert capsys.readouterr().err.startswith("error: unknown flag --safe-dir")


def test_one_thing_has_one_flag():
    """In all programs: no flag is another one's alias, and none has two spellings in use."""
    own, other = set(), set()
    for name in ["train", "demo", *PROGRAMS]:
        main = importlib.import_module(name).main
        parameters = inspect.signature(main).parameters
        own |= {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        aliases = getattr(main, "aliases", {})
        assert set(aliases.values()) <= set(parameters)
        other |= set(aliases)
    assert not own & other

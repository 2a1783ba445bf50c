"""What the documents say of the project is so."""

import re
import shutil
from pathlib import Path

import docs_walk
import pytest

ROOT = Path(__file__).resolve().parents[1]


def named_tests() -> list[tuple[str, str]]:
    """The (file, test) pairs of the documents; "::test" alone is of the file before."""
    found, file = [], ""
    for document in (ROOT / "docs").glob("*.md"):
        for match in re.finditer(r"`(test_\w+\.py)?::(test_\w+)", document.read_text()):
            file = match[1] or file
            found.append((file, match[2]))
    return found


@pytest.mark.parametrize("file, test", sorted(set(named_tests())))
def test_documents_name_tests_that_exist(file, test):
    folder = ROOT / "tests" / ("golden" if file.startswith("test_golden") else "")
    assert f"\ndef {test}(" in (folder / file).read_text()


def test_every_published_defect_has_its_entry():
    text = (ROOT / "docs" / "implementation.md").read_text()
    assert {f"B{i}" for i in range(1, 27)} <= set(re.findall(r"\bB\d+\b", text))


def test_every_command_of_the_documents_is_found():
    """What `make docs-test` walks: the main job, and every block that begins like a command."""
    commands = [c for document in docs_walk.DOCUMENTS for c in docs_walk.commands_of(document)]
    texts = [command.text for command in commands]
    assert {"make train", "make test"} <= set(texts)
    for command in commands:
        assert re.match(docs_walk.FIRST_WORDS, command.text), command
    in_text = re.findall(
        r"^    (?:python|make|docker|torchrun) ", (ROOT / "README.md").read_text(), re.M
    )
    assert len(in_text) == sum(
        re.match("python|make|docker|torchrun", c.text) is not None
        for c in commands if c.document == "README.md"
    )  # fmt: skip


def test_the_image_and_the_makefile_take_the_same_uv():
    image = re.search(r"^ARG UV_VERSION=(.*)$", (ROOT / "Dockerfile").read_text(), re.M)
    make = re.search(r"^UV_VERSION := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert image[1] == make[1]


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{p.name}" for p in
                                                     (ROOT / "docs").glob("*.md"))])  # fmt: skip
def test_links_and_commands_name_what_is_there(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target
    for module in re.findall(r"python -m (?!pytest)([\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_the_first_table_of_the_readme_is_from_the_results():
    """Each of its rows, without its words, is in docs/results.md: without, with, and the change."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = [line.split(" | ")[1:] for line in lines[start + 1 : lines.index("", start)]]
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) >= 3
    for without, consistency, change in rows:
        assert any(
            f"| {without} ±" in line and f"| {consistency} ±" in line and line.endswith(change)
            for line in results
        ), change  # fmt: skip


def test_the_results_name_no_folder_of_the_machine_that_made_them():
    files = [ROOT / "docs" / "results.md", *(ROOT / "docs" / "results" / "cpu").rglob("*.json")]
    assert len(files) > 10
    for file in files:
        assert not re.search(r"--[a-z-]+=/", file.read_text(encoding="utf-8")), file


@pytest.mark.slow  # half a minute: the intervals of all errors
def test_the_results_are_what_the_copies_beside_them_say(run, tmp_path):
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"^Written by `python -m scripts.reproduce (.*?)`", page, re.M)
    shutil.copytree(ROOT / "docs" / "results" / "cpu", tmp_path / "kept")
    status, said, _ = run(
        *words.split(), "--only=report", f"--output-dir={tmp_path / 'work'}",
        f"--keep={tmp_path / 'kept'}", f"--report={tmp_path / 'results.md'}",
        program="scripts.reproduce", defaults=False,
    )  # fmt: skip
    assert status == 0, said
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == page


def test_the_map_names_every_module():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    own = [file for file in ROOT.glob("*.py") if not file.name.startswith("my_")]  # no reader's
    for file in own:
        assert f"`{file.name}`" in text, file
    for folder in ("modules", "loading", "methods", "training", "measuring", "scripts", "web"):
        assert f"`{folder}/`" in text
        for file in (ROOT / folder).rglob("*.py"):
            assert file.stem == "__init__" or f"`{file.stem}`" in text, file

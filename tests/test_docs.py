"""What the documents say of the project is so."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def named_tests() -> list[tuple[str, str]]:
    """The (file, test) pairs of docs/implementation.md; "::test" alone is of the file before."""
    text = (ROOT / "docs" / "implementation.md").read_text()
    found, file = [], ""
    for match in re.finditer(r"`(test_\w+\.py)?::(test_\w+)", text):
        file = match[1] or file
        found.append((file, match[2]))
    return found


@pytest.mark.parametrize("file, test", sorted(set(named_tests())))
def test_implementation_notes_name_tests_that_exist(file, test):
    folder = ROOT / "tests" / ("golden" if file.startswith("test_golden") else "")
    assert f"\ndef {test}(" in (folder / file).read_text()


def test_every_published_defect_has_its_entry():
    text = (ROOT / "docs" / "implementation.md").read_text()
    assert {f"B{i}" for i in range(1, 27)} <= set(re.findall(r"\bB\d+\b", text))


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{p.name}" for p in
                                                     (ROOT / "docs").glob("*.md"))])  # fmt: skip
def test_links_and_commands_name_what_is_there(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target
    for module in re.findall(r"python -m (?!pytest)([\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module

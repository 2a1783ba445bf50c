"""The program that measures the start of a run on many views."""

import pytest


@pytest.mark.slow  # starts Python twice for each number
def test_the_start_is_measured_with_and_without_an_index(run, tmp_path):
    arguments = ("--views=40,2600", f"--folder={tmp_path}", "--num-workers=1", "--reads=10")
    status, output, _ = run(*arguments, program="scripts.benchmark_views", defaults=False)
    assert status == 0, output
    rows = [line.split() for line in output.splitlines() if line.startswith(("40 ", "2600 "))]
    assert [row[1] for row in rows[-4:]] == ["320", "320", "20800", "20800"]
    assert not list(tmp_path.glob("views-*"))


@pytest.mark.parametrize("views", ["0", "many"])
def test_a_number_of_views_that_cannot_be(run, views):
    status, output, _ = run(f"--views={views}", program="scripts.benchmark_views", defaults=False)
    assert status == 2 and output.count("\n") == 1 and "whole numbers" in output

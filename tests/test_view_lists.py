"""Lists of views: data in no layout, by a table of files."""

import json
import os

import pytest
import torch

from datasets import TaskDataset
from loading.layouts import find_buildings, find_places, find_views
from loading.splits import split_buildings
from task_configs import TASKS
from utils import UserError

NAMES = "rgb", "normal", "depth_zbuffer"
SOME = [TASKS[name] for name in NAMES]


@pytest.fixture
def table(rooms, tmp_path):
    """Link the rooms' files under names of no layout; return their rows, (building, cells)."""
    rows = []
    for number, view in enumerate(find_views(SOME, [rooms], find_buildings([rooms]))):
        cells = []
        for task in SOME:
            path = tmp_path / "scans" / f"{task.name[:2]}, no {number:02}.png"
            path.parent.mkdir(exist_ok=True)
            os.link(view.path(task), path)
            cells.append(path.relative_to(tmp_path).as_posix())
        rows.append((view.building, cells))
    return rows


def quoted(cells) -> str:
    return ",".join(f'"{cell}"' for cell in cells)


@pytest.fixture
def write(tmp_path):
    def call(header: str, *lines: str, name="my views.csv"):
        (tmp_path / name).write_text("\n".join((header, *lines)) + "\n", encoding="utf-8-sig")
        return tmp_path / name

    return call


def test_a_list_gives_the_tensors_of_the_files(rooms, table, write, tmp_path, monkeypatch):
    lines = [f"{quoted(cells)},{building}" for building, cells in table]
    path = write("rgb,normal,depth_zbuffer,building", "# a comment", "", *lines)
    tasks = [*SOME, TASKS["sobel_edges"]]  # edges are computed from rgb
    buildings = find_buildings([path])
    assert buildings == find_buildings([rooms])
    ours, theirs = (TaskDataset(tasks, find_views(tasks, [f], buildings), 32)
                    for f in (path, rooms))  # fmt: skip
    assert len(ours) == len(theirs) == 16
    order = [view.name for view in ours.views[:4]]
    assert order == [f"scans/rg, no {n:02}" for n in range(4)]  # the first path is the name
    for i in range(16):
        assert all(torch.equal(a, b) for a, b in zip(ours[i], theirs[i], strict=True))
    monkeypatch.chdir(tmp_path / "scans")  # paths are relative to the list, wherever one is
    assert len(find_views(SOME, [os.path.relpath(path)], buildings)) == 16


@pytest.mark.parametrize("separator", ["\t", ";"])
def test_columns_may_be_separated_otherwise(table, write, separator):
    lines = [separator.join([f"v_{n}", *cells]) for n, (_, cells) in enumerate(table)]
    path = write(separator.join(["view", *NAMES]), *lines, name="list.txt")
    assert [place.building for place in find_places(path)] == ["list"]
    assert [view.name for view in find_views(SOME, [path], ["list"])] == [
        f"v_{n}" for n in range(16)
    ]


def test_the_split_is_a_column(table, write, capsys):
    parts = ["train", "val", "train", "test"]
    lines = [f"{quoted(cells)},{parts[n % 4]}" for n, (_, cells) in enumerate(table)]
    path = write("rgb,normal,depth_zbuffer,split", *lines)
    split = split_buildings([path])
    assert split == {"train": ["train"], "val": ["val"], "test": ["test"]}
    assert [len(find_views(SOME, [path], split[part])) for part in split] == [8, 4, 4]
    assert "warning" not in capsys.readouterr().err
    lines = [f"{line},{building}" for line, (building, _) in zip(lines, table, strict=True)]
    path = write("rgb,normal,depth_zbuffer,split,building", *lines)
    split = split_buildings([path])
    assert split["val"] == [f"{b} (val)" for b in sorted({b for b, _ in table})]
    assert [len(find_views(SOME, [path], split[part])) for part in split] == [8, 4, 4]
    assert "some buildings are in more than one split" in capsys.readouterr().err


def test_an_empty_cell_and_a_missing_file_are_counted_and_named(table, write, tmp_path, capsys):
    cells = [list(cells) for _, cells in table]
    cells[4][1] = ""
    path = write(",".join(NAMES), *map(quoted, cells))
    views = find_views(SOME, [path], ["my views"])
    said = capsys.readouterr().err
    assert len(views) == 15
    assert f"1 of 16 views under {path} lack a domain (normal in my views: 1; " in said
    assert f"{path}, line 6: no file of normal is named" in said
    (tmp_path / cells[2][2]).unlink()
    (tmp_path / cells[3][2]).unlink()
    with pytest.raises(UserError, match=f"3 of 16 views .*{path}, line 4: there is no file"):
        find_views(SOME, [path], ["my views"])


@pytest.mark.parametrize(
    "text, said",
    [
        ("rgb,norml\na,b\n", "line 1: 'norml' is not a column; did you mean normal?"),
        ("a.png,b.png\n", "line 1: 'a.png' is not a column"),
        ("rgb,sobel_edges\na,b\n", "line 1: 'sobel_edges' is not a column"),
        ("# x\nrgb,rgb\na,b\n", "line 2: the column rgb is there twice"),
        ("building,view\na,b\n", "line 1: there is no column with a domain's files"),
        ("rgb,normal\na,b\n\nc\n", "line 4: 1 columns, where the header has 2"),
        ("rgb,split\na,tarin\n", "line 2: the split is train, val or test, not 'tarin'; did you"),
        ("rgb,building\na,\n", "line 2: the column building is empty"),
        ("rgb,view\n,b\n", "line 2: it names no file"),
        ("rgb,normal\na,b\na,c\n", "line 3: the view a of list is in line 2 already"),
        ('rgb,normal\n"a,b\n', "line 2: it is not a line of a table"),
        ("rgb\n", "lists no views"),
        ("", "lists no views"),
        (b"\x89PNG\r\n\x1a\n\xff", "cannot read the list of views"),
        (b"rgb\na\0b\n", "line 2: it is not text"),
    ],
)
def test_what_is_wrong_in_a_list_is_named_by_its_line(run, tmp_path, text, said):
    path = tmp_path / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    status, output, _ = run(str(path), program="scripts.check_data", defaults=False)
    assert status == 2 and len(output.splitlines()) == 1, output
    assert str(path) in output and said in output


def test_programs_take_a_list(run, table, write, tmp_path, networks):
    lines = [f"{quoted(cells)},{building}" for building, cells in table]
    path = write("rgb,normal,depth_zbuffer,building", *lines)
    status, output, results = run("rgb2normal", f"--data-dirs={path}", "--steps-per-epoch=1")
    assert status == 0 and "views: train 8, val 4, test 4" in output, output
    (record,) = results.glob("*/run.json")
    assert json.loads(record.read_text())["data"] == [str(path)]
    own = {"defaults": False}
    status, output, _ = run(str(path), "--workers=1", program="scripts.check_data", **own)
    assert (status, output.splitlines()[-1]) == (0, "nothing is wrong"), output
    pack = tmp_path / "pack"
    status, output, _ = run(str(path), f"--to={pack}", "--image-size=32", "--num-workers=0",
                            program="scripts.pack", **own)  # fmt: skip
    assert status == 0 and "16 views of 4 domains" in output, output
    listed, packed = (TaskDataset(SOME, find_views(SOME, [f], find_buildings([f])), 32)
                      for f in (path, pack))  # fmt: skip
    for i in range(16):
        assert all(torch.equal(a, b) for a, b in zip(listed[i], packed[i], strict=True))
    status, output, _ = run(
        f"--data-dirs={path}", f"--models-dir={networks}", f"--save-dir={tmp_path / 'e'}",
        "--quiet", program="scripts.energy_calc", **own,
    )  # fmt: skip
    assert status == 0 and "4 views →" in output, output


def test_the_check_names_the_line_of_a_missing_file(run, table, write, tmp_path):
    (tmp_path / table[5][1][1]).unlink()
    path = write(",".join(NAMES), *(quoted(cells) for _, cells in table))
    status, output, _ = run(str(path), "--workers=1", program="scripts.check_data", defaults=False)
    assert status == 1 and "1 file missing" in output
    assert f"{path}, line 7: there is no file {tmp_path / table[5][1][1]}" in output


def test_a_column_whose_files_are_all_absent_is_wrong(write, table, run):
    """Also rgb, which all training reads, where there is no column of it."""
    lines = [quoted(["gone/" + cells[0], cells[1]]) for _, cells in table]
    for path in (write("rgb,normal", *lines), write("normal", *(quoted(c[1:2]) for _, c in table),
                                                    name="b.csv")):  # fmt: skip
        status, output, _ = run(str(path), program="scripts.check_data", defaults=False)
        assert status == 1 and "missing: rgb: " in output
        assert output.splitlines()[-1].startswith("1 domain missing")

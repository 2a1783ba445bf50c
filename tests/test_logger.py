import json
import socket
import threading
import time

import pytest
import torch

from logger import Logger, connect_visdom, in_order, montage


def test_running_means_lines_and_records(tmp_path):
    logger = Logger("train", tmp_path / "log.jsonl")
    for value in (1.0, 2.0, torch.tensor([1.0, 3.0])):
        logger.update("loss", value)
    logger.update("epoch", 0)
    line = logger.step(at=3)
    assert line.startswith("(train) loss: 1.6667, epoch: 0,  ... ")
    logger.update("loss", 0.5)
    assert logger.step(at=4, split="val").startswith("(train) loss: 0.5000, epoch: 0,  ... ")
    logger.close()
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["split"], first["step"], round(first["loss"], 4)) == ("train", 3, 1.6667)
    assert (second["split"], second["loss"], "epoch" in second) == ("val", 0.5, False)


def test_a_mean_that_is_no_number_is_shown():
    logger = Logger("train")
    logger.update("loss", float("nan"))
    logger.update("other", float("inf"))
    assert "loss: nan, other: inf" in logger.step()


@pytest.mark.parametrize("server", ["localhost", "a..b"])
def test_no_server_is_one_line(server, capsys):
    assert connect_visdom("env", server, 9) is None
    assert capsys.readouterr().out.count("\n") == 1


def test_a_server_that_never_answers_does_not_slow_a_step(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, then keeps silent
        stop = threading.Event()
        windows = connect_visdom("env", "127.0.0.1", server.getsockname()[1])
        logger = Logger("train", tmp_path / "log.jsonl", windows)
        start = time.monotonic()
        for at in range(200):
            logger.update("loss", 1.0)
            logger.step(at)
        assert time.monotonic() - start < 2
        stop.set()


def test_columns_put_the_error_map_after_the_prediction():
    assert in_order(["x", "y^", "n(x)", "f(y^)"]) == ["x", "y^", "n(x)", "error", "f(y^)"]


def test_montage_places_cells_below_labels():
    columns = {"x": torch.ones(2, 3, 16, 16), "depth": torch.full((2, 1, 16, 16), 0.5)}
    picture = montage(columns, cell=32)
    assert picture.size == (2 * 34 + 2, 18 + 2 * 34 + 2)
    assert picture.getpixel((10, 30)) == (255, 255, 255)
    assert picture.getpixel((50, 30)) == (127, 127, 127)
    assert picture.getpixel((35, 30)) == (0, 0, 0)
    header = picture.crop((0, 0, 70, 18))
    assert header.getextrema()[0][1] > 200  # text

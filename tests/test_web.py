"""The page: what it shows, what it refuses in one sentence, and what it leaves behind."""

import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from demo import predict
from energy import ENERGY_DOMAINS
from flags import command_line
from measuring.consistency_energy import UNLABELLED
from measuring.graph_picture import graph_picture
from scripts import web
from sources import DEMO_MODELS, SHIPPED
from transfers import TRANSFERS
from utils import ROOT, UserError
from web import state
from web.answers import Answers
from web.downloads import deep_png, plain, write_values
from web.energies import Energy, energies_of
from web.graphs import Graphs
from web.page import free_port, settings
from web.parts import EXAMPLES, opened
from web.state import Limits, Shared, one_sentence

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_FLAGS = [
    "--headless", "--no-sandbox", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",  # WebGL without a GPU, for the surfaces
]  # fmt: skip

PHOTOGRAPH = 5  # the example that the browser's test takes, and the screenshots show


def made_picture(seed: int) -> Image.Image:
    """A picture of coarse random colours, another for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((120, 90), Image.Resampling.BILINEAR)


@pytest.fixture
def shared(networks):
    made = Shared(models_dir=networks)
    yield made
    made.close()


# ---- networks by name -------------------------------------------------------------------


def test_networks_at_hand_have_names(networks, tmp_path, monkeypatch):
    class Job:
        base_dir, models_dir, results_dir = tmp_path, tmp_path / "models", tmp_path / "results"

    monkeypatch.setattr(state, "read_job", lambda: Job)
    run = tmp_path / "results" / "run_1"
    run.mkdir(parents=True)
    (run / "rgb2normal_consistency.pth").write_bytes(
        (networks / "rgb2normal_baseline.pth").read_bytes()
    )
    own = tmp_path / "own"  # other tests may add networks to the common folder
    own.mkdir()
    for file in networks.glob("rgb2*_baseline.pth"):
        (own / file.name).write_bytes(file.read_bytes())
    shared = Shared(models_dir=own)
    names = shared.configurations("normal")
    assert names[0] == "baseline (own)"
    assert "consistency (results/run_1)" in names and "consistency (assets/demo_models)" in names
    assert len(names) == len(set(names)) == len(set(shared.networks("normal").values()))
    assert shared.pair("normal") == (names[0], "consistency (assets/demo_models)")
    predictor = shared.predictor("normal", "consistency (results/run_1)")
    assert list(predictor.networks) == ["consistency (results/run_1)"]
    with pytest.raises(UserError, match="no network gone for depth is at hand"):
        shared.predictor("depth", "gone")
    shared.close()
    assert not shared.folder.exists()


# ---- answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    ["normal", *(pytest.param(task, marks=pytest.mark.slow) for task in ("depth", "reshading"))],
)
def test_an_answer_holds_the_predictions(task, shared):
    pytest.importorskip("av")
    picture = made_picture(0)
    names = shared.pair(task)
    answer = Answers(shared).answer(picture, task, names, "my: picture")
    first, second = answer.pictures
    assert first.size == second.size and min(first.size) > 256
    assert answer.domains.width > 400 and answer.energy.width > 500
    for name in names:
        file = shared.checkpoint_of(task, name)
        assert f"- {name}: `{file.name}`" in answer.text
        values = predict(picture, task, checkpoint=file)
        (array,) = [f for f in answer.files if f.suffix == ".npy" and plain(name) in f.name]
        expected = {"normal": 2 * values - 1, "depth": 15.625 * values}.get(task, values)
        found = torch.from_numpy(np.load(array))
        if task == "normal":
            expected = torch.nn.functional.normalize(expected, dim=0)
        expected = expected[0] if task == "depth" else expected.movedim(0, -1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert array.name.startswith(f"my_picture_{task}_")
    assert len(answer.files) == 4 and "nothing to compare it with" in answer.text


def test_downloads_have_sixteen_bits(tmp_path):
    av = pytest.importorskip("av")
    values = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
    with av.open(io.BytesIO(deep_png(values))) as file:
        (frame,) = file.decode(video=0)
    assert frame.format.name == "rgb48be"
    found = torch.from_numpy(frame.to_ndarray(format="rgb48be").astype(np.int32))
    assert torch.equal(found.movedim(-1, 0), (values * 65535).round().int())
    deep, array = write_values(tmp_path, "a", "depth", {"b": values[:1]})
    with Image.open(deep) as file:
        metres = np.asarray(file) / 512
    np.testing.assert_allclose(metres, np.load(array), atol=0.5001 / 512)


def test_an_energy_and_its_place(networks):
    shared = Shared(models_dir=SHIPPED)
    energies = energies_of(shared)
    room, noise = Image.open(ROOT / "assets" / "room.png"), made_picture(1)
    usual, odd = (energies.of_image(image.convert("RGB")) for image in (room, noise))
    assert usual.views == 144 and 0 < usual.share < 0.9 < odd.share
    assert usual.value < odd.value
    assert f"higher than {usual.share:.0%}".replace("%", " %") in usual.sentence
    assert "no more than usual" in usual.sentence and "distrust" in odd.sentence
    assert Energy(-0.5, 0.0, 3).sentence.startswith("Energy −0.50: lower than all of 3 held-out")
    shared.close()


# ---- the graph --------------------------------------------------------------------------


def test_the_graph_shows_an_images_disagreements(shared):
    graphs = Graphs(shared)
    picture, text = graphs.answer(UNLABELLED, made_picture(0))
    assert picture.size == (1200, 900)
    for domain in ENERGY_DOMAINS:
        assert f"| {domain} → normal |" in text
    with pytest.raises(UserError, match="no path from the image through another domain"):
        graphs.answer("example_normal_direct", made_picture(0))
    with pytest.raises(UserError, match="no energy configuration"):
        graphs.answer("gone")


def test_the_graph_picture_highlights_paths():
    edges = [row.edge for row in TRANSFERS.values()]

    def blue(picture: Image.Image) -> int:
        return int((np.abs(np.asarray(picture).astype(int) - (0, 114, 178)).sum(axis=2) < 9).sum())

    none = blue(graph_picture(edges))
    some = blue(graph_picture(edges, {"a": ("rgb", "normal", "reshading")}))
    assert none == 0 < 1000 < some
    assert graph_picture([("rgb", "mine")], {}, {("rgb", "mine"): 0.0}).size == (1200, 900)


# ---- what goes wrong --------------------------------------------------------------------


@pytest.fixture
def run_page(monkeypatch, capsys):
    """Run the command line of scripts.web, which is to fail: (exit status, what it printed)."""

    def call(*flags: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["scripts.web", *flags])
        with pytest.raises(SystemExit) as stop:
            command_line(web.main)
        printed = capsys.readouterr()
        return stop.value.code, printed.out + printed.err

    return call


def test_a_port_in_use_is_one_sentence(run_page):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, said = run_page(f"--port={port}")
    assert (status, said) == (
        2, f"error: port {port} of 127.0.0.1 is in use: give another --port\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    "flags,sentence",
    [
        (["--port=99999"], "error: --port is 0 to 65535, not 99999\n"),
        (["--host=no.such.host.invalid"],
         "error: --host no.such.host.invalid is not an address of this machine\n"),
        (["--host=192.0.2.1"], "error: --host 192.0.2.1 is not an address of this machine\n"),
        (["--checkpoint=gone.pth"], "error: no checkpoint gone.pth\n"),
        (["--models-dir=gone"], "error: no models folder gone\n"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(flags, sentence, run_page):
    flags = flags if "port" in flags[0] else [*flags, "--port=0"]
    assert run_page(*flags) == (2, sentence)


def test_without_the_extra_the_command_is_named(run_page, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    status, said = run_page("--port=0")
    assert status == 2 and said.startswith("error: the page needs Gradio") and said.count("\n") == 1
    assert "make demo" in said


@pytest.mark.slow
def test_errors_are_shown_without_a_traceback():
    gr = pytest.importorskip("gradio")

    @one_sentence
    def wrong(error: Exception) -> None:
        raise error

    @one_sentence
    def generator(error: Exception):
        yield 1
        raise error

    for error, shown in [
        (UserError("`size` is <b>"), "size is &lt;b&gt;"),
        (MemoryError(), "there is not enough memory"),
        (KeyError("secret"), "for an unexpected reason"),
    ]:
        with pytest.raises(gr.Error) as raised:
            wrong(error)
        assert shown in raised.value.message and "secret" not in raised.value.message
        assert not raised.value.print_exception
        with pytest.raises(gr.Error):
            list(generator(error))


def test_an_upload_is_opened_or_named(tmp_path):
    made_picture(0).convert("CMYK").save(tmp_path / "ink.tiff")
    assert opened(str(tmp_path / "ink.tiff")).mode == "RGB"
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"^text\.png is broken, or not an image"):
        opened(str(tmp_path / "text.png"))
    with pytest.raises(UserError, match="first choose an image"):
        opened(None)
    assert all(path.is_file() for path in EXAMPLES)


def test_what_has_expired_is_removed(tmp_path):
    shared = Shared(Limits(keep_minutes=10))
    (shared.folder / "example.png").write_bytes(b"1")
    shared.kept = set(shared.folder.rglob("*"))
    old, new = shared.new_folder(), shared.new_folder()
    for folder in (old, new):
        (folder / "values.npy").write_bytes(b"1")
    ago = time.time() - 601
    for path in (shared.folder / "example.png", old / "values.npy", old):
        os.utime(path, (ago, ago))
    shared.sweep()
    assert not (old / "values.npy").exists() and (new / "values.npy").exists()
    assert (shared.folder / "example.png").exists()
    shared.close()


def test_the_settings_keep_gradio_to_itself(monkeypatch):
    monkeypatch.setenv("no_proxy", "intra")
    given = settings("/tmp/x")
    assert given["GRADIO_ANALYTICS_ENABLED"] == "False" and given["GRADIO_TEMP_DIR"] == "/tmp/x"
    assert given["no_proxy"] == "intra,localhost,127.0.0.1"
    assert 0 < free_port("127.0.0.1", 0) < 2**16


# ---- the server -------------------------------------------------------------------------


@pytest.fixture
def site(networks, monkeypatch):
    """A page that is served in this process: (its address, what its tabs share)."""
    pytest.importorskip("gradio")
    pytest.importorskip("av")
    from web.page import build, serve

    shown = "XTC_SCREENSHOTS" in os.environ
    shared = Shared(checkpoint=[DEMO_MODELS]) if shown else Shared(models_dir=networks)
    for name, value in settings(str(shared.folder)).items():
        monkeypatch.setenv(name, value)
    # as on a busy machine, where Gradio's look at its own page takes too long
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    page = build(shared)
    yield serve(page, shared, "127.0.0.1", 0), shared
    page.close(verbose=False)
    shared.close()


def client_of(address: str, downloads: Path):
    """A user's client, which waits as long as it takes."""
    from gradio_client import Client

    patient = {"timeout": 600}
    return Client(address, verbose=False, download_files=str(downloads), httpx_kwargs=patient)


def asked(client, file: Path, shared: Shared) -> np.ndarray | str:
    """The page's answer for an image: normals of the first network, or its sentence."""
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    name = shared.pair("normal")[0]
    inputs = handle_file(str(file)), "normal", name, name
    try:
        *_, files = client.predict(*inputs, api_name="/image")
    except AppError as error:
        return str(error)
    return np.load(next(file for file in files if file.endswith(".npy")))


def expected_of(file: Path, shared: Shared) -> np.ndarray:
    checkpoint = shared.checkpoint_of("normal", shared.pair("normal")[0])
    values = predict(file, "normal", checkpoint=checkpoint)
    return torch.nn.functional.normalize(2 * values - 1, dim=0).movedim(0, -1).numpy()


def spoiled(folder: Path, seed: int) -> Path:
    """A file that is no image, of five kinds."""
    made_picture(seed).save(file := folder / f"broken_{seed}.png")
    whole = file.read_bytes()
    kinds = [whole[: len(whole) // 2], b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0", whole[:8]]
    file.write_bytes(kinds[seed % len(kinds)])
    return file


@pytest.mark.slow
def test_every_kind_of_upload(site, tmp_path):
    """What demo.py reads, the page reads; what it refuses is one sentence, without folders."""
    address, shared = site
    client = client_of(address, tmp_path / "down")
    picture = made_picture(0)
    frames = [made_picture(seed) for seed in range(3)]
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    images = {
        "cmyk.tiff": picture.convert("CMYK"), "deep.png": deep, "rgba.png": picture.convert("RGBA"),
        "palette.png": picture.quantize(16), "one.png": picture.crop((0, 0, 1, 1)),
        "long.png": Image.new("RGB", (20000, 1)), "line.webp": picture,
    }  # fmt: skip
    for name, image in images.items():
        image.save(tmp_path / name)
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    for name in [*images, "moving.gif"]:
        found = asked(client, tmp_path / name, shared)
        assert isinstance(found, np.ndarray), f"{name}: {found}"
        np.testing.assert_allclose(found, expected_of(tmp_path / name, shared), atol=1e-5)
    header = b"P6 60000 60000 255 "  # 3.6 thousand million pixels are claimed
    (tmp_path / "huge.ppm").write_bytes(header + bytes(99))
    for file in [*(spoiled(tmp_path, seed) for seed in range(5)), tmp_path / "huge.ppm"]:
        said = asked(client, file, shared)
        assert isinstance(said, str) and file.name in said, said
        assert "Traceback" not in said and str(shared.folder) not in said and "\n" not in said


@pytest.mark.slow
def test_twenty_users_at_once(site, tmp_path):
    """20 clients × 10 images, a fifth of them broken: none lost, none mixed up; nothing stays.

    A user who leaves in mid-answer does not disturb the others. Prints what it measured.
    """
    from gradio_client import handle_file

    address, shared = site
    made = []
    for seed in range(200):
        if seed % 5 == 4:
            made.append(spoiled(tmp_path, seed // 5 * 5 + random.Random(seed).randrange(5)))
        else:
            made_picture(seed).save(file := tmp_path / f"{seed}.png")
            made.append(file)
    order = random.Random(0).sample(made, len(made))
    answers: dict[Path, np.ndarray | str] = {}

    def user(number: int) -> None:
        client = client_of(address, tmp_path / f"down_{number}")
        if number == 7:  # another, who leaves
            leaving = client_of(address, tmp_path / "left")
            leaving.submit(handle_file(str(made[0])), "normal", *shared.pair("normal"),
                           api_name="/image")  # fmt: skip
            leaving.close()
        for file in order[10 * number : 10 * number + 10]:
            answers[file] = asked(client, file, shared)

    start, before = time.monotonic(), resident_megabytes()
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(user, range(20)))
    took = time.monotonic() - start
    assert len(answers) == len(made)
    for file, found in answers.items():
        if file.name.startswith("broken"):
            assert isinstance(found, str) and file.name in found, found
        else:
            assert isinstance(found, np.ndarray), found
            np.testing.assert_allclose(found, expected_of(file, shared), atol=1e-5)
    shared.limits = Limits(keep_minutes=-1)  # as if the time to keep them were over
    shared.sweep()
    shared.sweep()  # folders that are empty now
    left = {path for path in shared.folder.rglob("*")} - shared.kept
    assert not left
    print(f"200 answers in {took:.0f} s; memory {before:.0f} → {resident_megabytes():.0f} MB")


def resident_megabytes() -> float:
    """The memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_page_and_its_folder(number, tmp_path):
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "scripts.web", "--port", "0"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:  # fmt: skip
        lines = [process.stdout.readline()]
        while lines[-1] and not lines[-1].startswith("the page: http://127.0.0.1:"):
            lines.append(process.stdout.readline())
        assert lines[-1] and list(tmp_path.glob(f"{state.PREFIX}*"))
        process.send_signal(number)
        rest = process.stdout.read()
    assert process.returncode == 0 and rest == "the page is closed\n", lines + [rest]
    assert not list(tmp_path.glob(f"{state.PREFIX}*"))


@pytest.mark.slow
def test_every_tab_in_a_browser(site, tmp_path):
    """Every tab is used in Chromium, and no request leaves this machine.

    XTC_SCREENSHOTS names a folder for screenshots, which show the shipped networks.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("trimesh")
    if not CHROMIUM.is_file():
        pytest.skip(f"no {CHROMIUM}")
    address, _ = site
    hosts, errors = set(), []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(240_000)
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        for name, use in USES.items():
            page.get_by_role("tab", name=name).click()
            use(page, page.get_by_role("tabpanel").filter(visible=True), tmp_path)
            if "XTC_SCREENSHOTS" in os.environ:
                page.wait_for_timeout(2000)  # until it stands still
                folder = Path(os.environ["XTC_SCREENSHOTS"])
                page.screenshot(path=folder / f"{name}.png", full_page=True)
        browser.close()
    assert hosts - {""} == {address.removeprefix("http://")} and not errors


def use_image(page, tab, folder: Path) -> None:
    """Be told to choose an image, then predict the depth of an example."""
    tab.get_by_role("button", name="Predict").click()
    page.get_by_text("first choose an image").wait_for()
    page.get_by_text("first choose an image").wait_for(state="detached")  # it goes by itself
    choose_example(tab, PHOTOGRAPH)
    if "XTC_SCREENSHOTS" not in os.environ:
        tab.get_by_label("depth").check()
    tab.get_by_role("button", name="Predict").click()
    tab.get_by_text("All of this took").wait_for()
    if "XTC_SCREENSHOTS" in os.environ:  # the time of the second answer: the networks are there
        first = tab.get_by_text("All of this took").inner_text()
        tab.get_by_role("button", name="Predict").click()
        page.wait_for_function(
            "said => ![...document.querySelectorAll('p')].some(p => p.innerText === said)",
            arg=first,
        )
        tab.get_by_text("All of this took").wait_for()
    tab.locator("img").nth(3).wait_for()
    tab.get_by_text(re.compile(f"{EXAMPLES[PHOTOGRAPH].stem}_(depth|normal)")).first.wait_for()


def use_video(page, tab, folder: Path) -> None:
    """Compare two networks on a clip, and leaf through its frames."""
    from loading.video_files import written_video

    side, count = (256, 24) if "XTC_SCREENSHOTS" in os.environ else (96, 3)
    room = Image.open(EXAMPLES[0]).convert("RGB").resize((side + 2 * count, side + 2 * count))
    with written_video(folder / "clip.mp4", 10) as writer:
        for number in range(count):
            writer.add(room.crop((2 * number, number, 2 * number + side, number + side)))
    tab.locator("input[type=file]").first.set_input_files(folder / "clip.mp4")
    tab.get_by_text("clip.mp4").first.wait_for()
    tab.get_by_role("button", name="Compare").click()
    tab.get_by_text(f"{count} frames. The files are kept").wait_for()
    player = tab.locator("video[src*='clip_normal_compare.mp4']")
    player.wait_for()
    page.wait_for_function(
        "v => v.readyState >= 1 && v.duration > 0 && v.videoWidth > 0", arg=player.element_handle()
    )
    for end in ("compare.mp4", "energy.csv", "energy.png"):
        tab.get_by_text(f"clip_normal_{end.partition('.')[0]}").first.wait_for()
    pictures = tab.locator(".image-frame img")
    pictures.nth(1).wait_for()
    assert pictures.count() == 2  # the frame and the curve
    before = [picture.get_attribute("src") for picture in pictures.all()]
    number = tab.get_by_label("number input for frame")
    number.fill(str(count - 1))
    number.press("Enter")
    page.wait_for_function(
        "([f, c, before]) => f.src !== before[0] && c.src !== before[1]",
        arg=[pictures.nth(0).element_handle(), pictures.nth(1).element_handle(), before],
    )


def use_3d(page, tab, folder: Path) -> None:
    """Turn an image into a surface, and into a clip."""
    if "XTC_SCREENSHOTS" in os.environ:
        choose_example(tab, PHOTOGRAPH)
    else:
        Image.open(EXAMPLES[0]).resize((64, 64)).save(folder / "small.png")
        tab.locator("input[type=file]").first.set_input_files(folder / "small.png")
        tab.locator(".image-frame img").first.wait_for()
    with page.expect_response(lambda r: r.url.endswith("_mesh.glb") and r.ok) as answer:
        tab.get_by_role("button", name="Show in 3D").click()
    assert answer.value.body()[:4] == b"glTF"
    tab.locator("canvas").wait_for()
    seconds = tab.get_by_label("number input for seconds")
    seconds.fill("1")
    seconds.press("Enter")
    tab.get_by_role("button", name="Make the clip").click()
    tab.get_by_text("25 frames. The clip is kept").wait_for()
    clip = tab.locator("video[src*='_ken_burns.mp4']")
    clip.wait_for()
    page.wait_for_function("v => v.duration > 0.9", arg=clip.element_handle())


def use_graph(page, tab, folder: Path) -> None:
    """Draw the disagreement about an example on the edges."""
    choose_example(tab, 1)
    tab.get_by_role("button", name="Draw").click()
    tab.get_by_text("disagreement × 100").wait_for()


USES = {"Image": use_image, "Video": use_video, "3D": use_3d, "Graph": use_graph}


def choose_example(tab, number: int) -> None:
    """Click an example of a tab, and wait until the image is there."""
    tab.locator("button.gallery-item").nth(number).click()
    tab.get_by_label("Clear").or_(tab.get_by_label("Remove Image")).first.wait_for()
    tab.locator(".image-frame img").first.wait_for()

"""What a run uses when nothing, or something, is named."""

import shutil

import pytest

import sources as sources_module
from energy import energy_configs
from graph import edges_of
from models import load_network, save_network
from sources import SHIPPED, TRAINED, settle
from transfers import TRANSFERS, Scale, get_transfer
from utils import Job, UserError


@pytest.fixture
def job(tmp_path, rooms, monkeypatch):
    """A job in an empty folder, whose rooms are the small ones."""
    monkeypatch.setattr(
        sources_module, "make_rooms", lambda out, quiet: shutil.copytree(rooms, out)
    )
    return Job("job", tmp_path)


def test_nothing_named_nothing_there(job):
    setting = settle(job)
    assert setting.data_dirs == [job.rooms_dir] and setting.embedded
    assert setting.scale == Scale(64, 8)
    assert setting.models_dirs == [job.models_dir, SHIPPED]
    said = setting.data_text + setting.networks_text
    for word in ("`data_dirs`", "`models_dir`", "`image_size`", "`width`", "embedded rooms"):
        assert word in said


def test_the_jobs_own_data_and_models_come_first(job, rooms, networks):
    shutil.copytree(rooms, job.data_dir)
    assert settle(job).scale == Scale()  # the published one, as nothing else is recorded
    shutil.copytree(networks, job.models_dir)
    setting = settle(job)
    assert (setting.data_dirs, setting.embedded) == ([job.data_dir], False)
    assert (setting.models_dirs, setting.scale) == ([job.models_dir], Scale(32, 8))


def test_what_is_named_is_used_as_named(job, rooms, networks):
    setting = settle(job, data_dirs=[str(rooms)], models_dir=str(networks))
    assert (setting.data_dirs, setting.models_dirs) == ([rooms], [networks])
    assert settle(job, scale=(128, None, None)).scale == Scale(128, 8)


def test_the_way_to_a_missing_network_repeats_the_arguments(job, rooms):
    """What the message says to run is about the same data, folder and scale."""
    setting = settle(job, data_dirs=[str(rooms)], scale=(None, 8, None))
    with pytest.raises(UserError, match="no checkpoint rgb2normal_baseline.pth") as raised:
        setting.checkpoint(TRANSFERS["rgb", "normal"], "multiperceptual_normal")
    command = f"python -m scripts.train_edges multiperceptual_normal --data-dirs={rooms} --width=8"
    assert f"`{command}`" in str(raised.value)
    assert "`models_dir` " in str(raised.value) and "assets/rooms_models" in str(raised.value)


def test_networks_trained_here_come_after_the_jobs_own(job, rooms, networks):
    trained = job.models_dir / TRAINED
    shutil.copytree(networks, trained)
    setting = settle(job, data_dirs=[str(rooms)])
    assert (setting.models_dirs, setting.scale) == ([job.models_dir, trained], Scale(32, 8))
    assert setting.install_dir == trained
    row = TRANSFERS["normal", "reshading"]
    own = job.models_dir / row.checkpoint
    shutil.copy(trained / row.checkpoint, own)
    assert settle(job, data_dirs=[str(rooms)]).find(row) == own
    save_network(own, row.build(Scale(64, 16)), Scale(64, 16))  # of another scale
    setting = settle(job, data_dirs=[str(rooms)])
    assert (setting.models_dirs, setting.scale) == ([job.models_dir], Scale(64, 16))
    assert settle(job, models_dir=str(networks)).install_dir == networks


def test_unusable_rooms_are_named(tmp_path):
    job = Job("job", tmp_path)
    job.rooms_dir.mkdir()
    for content in ("{", '{"image_size": 32}'):
        (job.rooms_dir / "rooms.json").write_text(content)
        with pytest.raises(UserError, match="rooms.json.*`data_dirs`"):
            settle(job)


@pytest.mark.parametrize("name", energy_configs)
def test_shipped_networks_serve_every_configuration(name):
    for edge in edges_of(energy_configs[name]["paths"]):
        row = get_transfer(*edge)
        if row.trainable:
            record = load_network(row.build(Scale(64, 8)), SHIPPED / row.checkpoint, Scale(64, 8))
            assert record["command"] and "seed" in record


def test_shipped_networks_are_small():
    assert sum(f.stat().st_size for f in SHIPPED.parent.rglob("*") if f.is_file()) < 80e6

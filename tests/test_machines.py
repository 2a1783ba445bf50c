"""Training on several machines: failures of one rank, two nodes, and the script for Slurm."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import devices
from devices import FAILED, FailureWatch
from utils import ROOT

LAUNCHER = [sys.executable, "-m", "torch.distributed.run"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# ---- one rank fails ------------------------------------------------------------------------


@pytest.mark.slow  # each rank is a process that starts Python
@pytest.mark.parametrize(
    "how, said",
    [
        ("user", "error: the disk of rank 1 is full"),
        ("hang", "error: the disk of rank 1 is full"),
        ("raise", "ZeroDivisionError: a defect"),
        ("kill", "error: rank 0 has lost another process of this training, which was ended"),
    ],
)
def test_one_rank_that_fails_ends_all_with_one_message(how, said):
    command = [*LAUNCHER, "--standalone", "--nproc-per-node=2", "tests/failing_rank.py", how]
    # torchrun itself kills the others after 30 s more
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    ours, _, launchers = done.stderr.partition("torch.distributed.elastic")
    assert done.returncode != 0
    ours = ours.replace("[rank1]: ", "")  # torch puts this before tracebacks
    own = re.findall(r"^(?:error: .*|[A-Za-z.]+(?:Error|Exception): .*)$", ours, re.MULTILINE)
    assert [line.startswith(said) for line in own] == [True], done.stderr
    assert "exitcode  : -9" not in launchers or how == "kill"


@pytest.mark.parametrize("how", ["failed", "no store", "nothing"])
def test_a_rank_that_does_not_notice_is_ended(monkeypatch, how):
    monkeypatch.setattr(devices, "LOOK", 0.01)
    monkeypatch.setattr(devices, "GRACE", 0.01)
    port = free_port()
    server = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    ended = threading.Event()
    watch = FailureWatch(
        dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False), ended.set
    )
    watch.start()
    if how == "failed":
        server.add(FAILED, 1)
    elif how == "no store":
        del server
    else:
        watch.stop()
    watch.join(timeout=60)
    assert not watch.is_alive() and ended.is_set() == (how != "nothing")


# ---- two nodes -----------------------------------------------------------------------------


def flags_of(rooms: Path, networks: Path, results: str | Path) -> list[str]:
    return [
        "example_normal", "--k=1", f"--data-dirs={rooms}", f"--models-dir={networks}",
        "--steps-per-epoch=4", "--max-epochs=2", "--batch-size=2", "--visdom-server=none",
        "--num-workers=0", *([f"--results-dir={results}"] if results else []),
    ]  # fmt: skip


def target_of(results: Path) -> dict:
    last = max(results.glob("*/state_*.pt"))
    return torch.load(last, weights_only=True)["training"]["target"]


def same(ours: Path, theirs: Path) -> bool:
    a, b = target_of(ours), target_of(theirs)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def on_one_node(rooms, networks, tmp_path) -> Path:
    """The results of two processes on one node."""
    results = tmp_path / "one node"
    command = [*LAUNCHER, "--standalone", "--nproc-per-node=2", "-m", "train"]
    subprocess.run(
        [*command, *flags_of(rooms, networks, results)], cwd=ROOT, check=True, timeout=500,
        capture_output=True,
    )  # fmt: skip
    return results


@pytest.mark.slow  # each rank is a process that starts Python
def test_two_nodes_with_a_launcher_each_train_as_one_with_two_processes(
    rooms, networks, tmp_path, on_one_node
):
    results, port = tmp_path / "two nodes", free_port()
    agents = []
    for node in range(2):
        command = [
            *LAUNCHER, "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1",
            "--master-addr=127.0.0.1", f"--master-port={port}", "-m", "train",
        ]  # fmt: skip
        file = open(tmp_path / f"node {node}.txt", "w")
        agents.append(
            subprocess.Popen(
                [*command, *flags_of(rooms, networks, results)], cwd=ROOT, stdout=file, stderr=file
            )
        )
    said = [(agent.wait(timeout=500), tmp_path / f"node {n}.txt") for n, agent in enumerate(agents)]
    assert [status for status, _ in said] == [0, 0], said[0][1].read_text() + said[1][1].read_text()
    assert len(list(results.iterdir())) == 1 and same(results, on_one_node)


# ---- Slurm ----------------------------------------------------------------------------------

SBATCH = """#!/bin/bash
export SLURM_JOB_ID=7 SLURM_JOB_NODELIST=node[1-2] SLURM_SUBMIT_DIR=$PWD
while true; do
    rm -f requeued
    bash "$@"
    status=$?
    [ -f requeued ] || exit $status
done
"""
SCONTROL = """#!/bin/bash
echo "$@" >> scontrol.txt
[ "$1" = requeue ] && touch requeued
[ "$1 $2" = "show hostnames" ] && printf '127.0.0.1\n127.0.0.2\n'
exit 0
"""
# Ends as the next line of `statuses` says, "saved" if it leaves a state and a record before.
SRUN = """#!/bin/bash
echo "${@: -1}" >> last_words.txt
read -r status saved < statuses
sed -i 1d statuses
mkdir -p results/slurm_7/run
touch results/slurm_7/run/run.json
[ -z "$saved" ] || touch "results/slurm_7/run/state_0000$(wc -l < last_words.txt).pt"
exit "$status"
"""
# Two tasks; the first job gets the signal that Slurm sends before its time is over.
SRUN_TASKS = """#!/bin/bash
shift
export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & pids+=($!)
done
if [ ! -f signalled ]; then
    until grep -qs chosen results/slurm_7/*/log.jsonl; do
        kill -0 "${pids[0]}" || exit 1
        sleep 0.05
    done
    touch signalled
    kill -TERM "${pids[@]}"
fi
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit ${status:-0}
"""


def submit(folder: Path, srun: str, *arguments: str) -> subprocess.CompletedProcess:
    """Submit the script in a folder, with stand-ins for Slurm's commands.

    Without an environment in the folder, the script takes python3: that of the tests.
    """
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    for name, text in {"sbatch": SBATCH, "scontrol": SCONTROL, "srun": srun}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    path = commands, Path(sys.executable).parent, os.environ["PATH"]
    variables = os.environ | {"PATH": ":".join(map(str, path))}
    return subprocess.run(
        [commands / "sbatch", ROOT / "tools/slurm_train.sh", *arguments], cwd=folder, text=True,
        env=variables, capture_output=True, timeout=500,
    )  # fmt: skip


@pytest.mark.parametrize(
    "statuses, last, requeues",
    [
        ("0 saved", 0, 0),
        ("143 saved\n130 saved\n0 saved", 0, 2),
        ("2", 2, 0),
        ("1 saved", 1, 0),
        ("143 saved\n137 saved", 137, 1),
        ("143", 143, 0),
        ("143 saved\n143", 143, 1),
    ],
)
def test_a_job_requeues_itself_by_the_exit_status(tmp_path, statuses, last, requeues):
    (tmp_path / "train.py").touch()
    (tmp_path / "statuses").write_text(statuses + "\n")
    done = submit(tmp_path, SRUN, "example_normal", "--k", "1")
    assert done.returncode == last, done.stderr
    asked = (tmp_path / "scontrol.txt").read_text().splitlines()
    assert (
        asked.count("requeue 7") == requeues == len(asked) - asked.count("show hostnames node[1-2]")
    )
    words = (tmp_path / "last_words.txt").read_text().split()
    assert words == ["results/slurm_7", *["--resume"] * requeues]
    assert ("not requeued" in done.stderr) == (last != 0)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "what to train?"),
        (("example_normal", "--resume"), "the jobs resume by themselves"),
        (("example_normal", "--results-dir=x"), "the jobs resume by themselves"),
        (("example_normal",), "no train.py"),
    ],
)
def test_a_job_that_cannot_be_is_one_sentence(tmp_path, arguments, said):
    if said != "no train.py":
        (tmp_path / "train.py").touch()
    done = submit(tmp_path, SRUN, *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr


@pytest.mark.slow  # each rank is a process that starts Python
def test_a_training_in_two_jobs_is_the_one_in_one(rooms, networks, tmp_path, on_one_node):
    project = tmp_path / "the project"
    project.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in ("results", "models", "data", ".git"):
            (project / entry.name).symlink_to(entry)
    done = submit(project, SRUN_TASKS, *flags_of(rooms, networks, ""))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "signalled").exists() and done.stdout.count("goes on later") == 1
    (folder,) = (project / "results/slurm_7").iterdir()
    assert json.loads((folder / "run.json").read_text())["processes"] == 2
    assert same(folder.parent, on_one_node)

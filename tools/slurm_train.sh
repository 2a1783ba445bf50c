#!/usr/bin/env bash
# Train on a Slurm cluster, in as many jobs after each other as the training needs.
#
#   sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 --time 12:00:00 tools/slurm_train.sh \
#       multiperceptual_normal --k 2 --random-select --data-dirs /data/taskonomy
#
# To be submitted in the project's folder. The arguments are those of `python -m train`. Each task
# is one process of the training, with one GPU. Two minutes before its time is over, or when the job
# is preempted, the training saves its state and stops; this script then puts the job into the
# queue again, and goes on from the state when it is started. All jobs train in one folder,
# results/slurm_JOB. If a job has saved no state, nothing is requeued: it would go on like that.
#
#SBATCH --job-name=xtconsistency
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

fail() {
    echo "error: $1" >&2
    exit 2
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "this is a job for Slurm: sbatch $0 CONFIGURATION [FLAGS]"
[ $# -gt 0 ] || fail "what to train? sbatch $0 CONFIGURATION [FLAGS]"
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
[ -f train.py ] || fail "submit the job in the project's folder: there is no train.py in $PWD"
for argument in "$@"; do
    case $argument in
        --resume* | --results-dir* | --results_dir*)
            fail "$argument: the jobs resume by themselves, in results/slurm_$SLURM_JOB_ID" ;;
    esac
done
python=$PWD/.venv/bin/python
[ -x "$python" ] || python=python3
results=results/slurm_$SLURM_JOB_ID

last_state() {
    find "$results" -name 'state_*.pt' 2>/dev/null | sort | tail -n 1
}

before=$(last_state)
resume=()
[ -z "$(find "$results" -name run.json 2>/dev/null)" ] || resume=(--resume)

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
TORCHELASTIC_RUN_ID=$SLURM_JOB_ID # by this, train.py knows that it is one of several processes
export MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID

# The variables of each task are known only where it runs.
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
    export LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-1}
    exec "$@"' task "$python" -m train "$@" --results-dir "$results" ${resume[@]+"${resume[@]}"}
status=$?

case $status in
    130 | 143) # stopped by a signal, with its state saved: see docs/scale.md
        if [ "$(last_state)" = "$before" ]; then
            echo "slurm_train: no state was saved since the job was started: not requeued" >&2
            exit "$status"
        fi
        echo "slurm_train: stopped with status $status; job $SLURM_JOB_ID goes on later"
        scontrol requeue "$SLURM_JOB_ID" || fail "job $SLURM_JOB_ID cannot be requeued"
        ;;
    0) ;;
    *) echo "slurm_train: failed with status $status: not requeued" >&2 ;;
esac
exit "$status"

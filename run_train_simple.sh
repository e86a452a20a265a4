#!/bin/bash
# Train on the 4 GPUs of a node on Levante (DKRZ), or on any SLURM cluster. From the repository's folder:
#
#   sbatch -A ACCOUNT run_train_simple.sh                 # the original experiment's training
#   sbatch -A ACCOUNT run_train_simple.sh --epochs 50     # arguments go to train_simple_ddp.py
#   sbatch -A ACCOUNT --nodes=2 run_train_simple.sh       # on the GPUs of two nodes
#   tail -f logs/train_simple.out
#
# Two minutes before the time limit the job stops training and requeues itself. It resumes after the last finished
# epoch. After scancel or an error, submit the same command again. After a node failure SLURM requeues the job by
# itself. See docs/levante.md.
#
#SBATCH --job-name=train_simple
#SBATCH --partition=gpu
#SBATCH --constraint=a100_80
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --output=logs/train_simple.out
#SBATCH --error=logs/train_simple.err
#SBATCH --open-mode=append
set -euo pipefail

MODULE=python3 # loaded if there is neither .venv nor an active environment

fail() {
    echo "run_train_simple.sh: error: $*" >&2
    exit 1
}

# SLURM's signals. If the warning comes before the training has started, the training ends as soon as it starts.
warned="" step=""
end_training() {
    warned=yes
    [ -n "$step" ] || return 0
    echo "== job $SLURM_JOB_ID: warned by SLURM, stopping the training"
    kill "$step" # srun ends its tasks
}
trap end_training USR2
trap 'echo "== job $SLURM_JOB_ID: ended by SLURM; submit the same command again to resume"; exit 143' TERM

# SLURM runs a copy of this script, so the repository is the folder where sbatch was called.
[ -n "${SLURM_JOB_ID:-}" ] || fail "not a SLURM job; run sbatch run_train_simple.sh (without SLURM: python train_simple_ddp.py)"
cd "$SLURM_SUBMIT_DIR"
[ -f train_simple_ddp.py ] || fail "$PWD: not the repository; call sbatch from its folder"
gpus=${SLURM_GPUS_PER_NODE:-0} # the requested number, 4 or a100:4; an exclusive node may have more
gpus=${gpus##*:}
[ "$gpus" -ge 1 ] || fail "the job has no GPU; leave --gpus-per-node as it is, or request at least 1"
[ "${SLURM_GPUS_ON_NODE:-0}" -ge "$gpus" ] ||
    fail "requested $gpus GPUs, got ${SLURM_GPUS_ON_NODE:-0} on $(hostname); submit again with --exclude=$(hostname)"

if [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
elif [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && type module >/dev/null 2>&1; then
    set +u # the module command uses unset variables
    module load "$MODULE" || true
    set -u
fi
python -c 'import importlib.util as u; assert all(map(u.find_spec, ("torch", "encodec", "soundfile")))' 2>/dev/null ||
    fail "no Python with torch, encodec and soundfile; create .venv first (docs/levante.md)"

header="== job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST, $(date -Is), \
commit $(git describe --always --dirty 2>/dev/null || echo unknown): train_simple_ddp.py $*"
echo "$header"
echo "$header" >&2

# One OpenMP thread is enough here. On a CPU, the workers set their own number.
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 OMP_NUM_THREADS=1
# Report wrong usage here once instead of in every worker. --device comes first, so that the user's own overrides it.
set -- --device cuda "$@"
# The limit is ten minutes, because importing torch from a cold file system can take most of that.
check=$(timeout 600 python train_simple_ddp.py --check_only --num_processes "$gpus" "$@") || {
    [ $? -ne 124 ] || fail "the check did not finish within 600 s; check the file system and the network"
    exit 1
}
echo "$check"

# One task per node starts one worker per GPU. They meet on the first node, where this script runs.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # so that two jobs on one node use different ports
export MASTER_PORT gpus
# The job requeues itself only if it has made progress.
checkpoints=$(sed -n 's/^checkpoints: //p' <<<"$check")
embeddings=$(sed -n 's/^embeddings: //p' <<<"$check")
epochs() { { grep '"epoch"' "$checkpoints/metrics.jsonl" 2>/dev/null || true; } | wc -l; }
epochs_before=$(epochs)
started=logs/.started_$SLURM_JOB_ID
touch "$started"
# shellcheck disable=SC2016 # each task expands its own SLURM_NODEID
srun --export=ALL --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --cpu-bind=none --kill-on-bad-exit=1 \
    bash -c 'exec python -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --node_rank="$SLURM_NODEID" \
        --nproc_per_node="$gpus" --master_addr="$SLURM_LAUNCH_NODE_IPADDR" --master_port="$MASTER_PORT" "$@"' \
    task train_simple_ddp.py "$@" &
step=$!
[ -z "$warned" ] || end_training

# `wait` also returns when a signal arrives. It can be called repeatedly for the step's status.
while kill -0 "$step" 2>/dev/null; do
    wait "$step" || true
done
status=0
wait "$step" || status=$?

new_embedding=$(find "$embeddings" -name '*.npy' -newer "$started" -print -quit 2>/dev/null || true)
rm -f "$started"
if [ -n "$warned" ] && [ "$status" -ne 0 ]; then
    [ "$(epochs)" != "$epochs_before" ] || [ -n "$new_embedding" ] ||
        fail "neither an epoch nor an embedding was finished before the time limit; request a longer --time"
    echo "== job $SLURM_JOB_ID: requeueing before the time limit; errors from the stopped workers are expected"
    scontrol requeue "$SLURM_JOB_ID" || fail "SLURM cannot requeue this job; submit it again to resume"
elif [ "$status" -ne 0 ]; then
    echo "== job $SLURM_JOB_ID: exit status $status; the reason is at the end of logs/train_simple.err"
    exit "$status"
fi

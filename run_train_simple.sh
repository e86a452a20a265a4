#!/bin/bash
# Train on Levante (DKRZ), or on any SLURM cluster, on the 4 GPUs of a node. From the repository's folder:
#
#   sbatch -A ACCOUNT run_train_simple.sh                 # the original experiment's training
#   sbatch -A ACCOUNT run_train_simple.sh --epochs 50     # arguments go to train_simple_ddp.py
#   sbatch -A ACCOUNT --nodes=2 run_train_simple.sh       # on the GPUs of two nodes
#   tail -f logs/train_simple.out
#
# Two minutes before the time limit the training is ended and the job requeues itself; it then resumes after the
# last finished epoch. So does the same command after scancel, a crash or a failed node. More: docs/levante.md
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

MODULE=python3 # loaded where there is neither .venv nor an active environment

fail() {
    echo "run_train_simple.sh: error: $*" >&2
    exit 1
}

# SLURM's signals: a warning that comes before there is a training to end waits for it.
warned="" step=""
end_training() {
    warned=yes
    [ -n "$step" ] || return 0
    echo "== job $SLURM_JOB_ID: warned by SLURM, ends the training"
    kill "$step" # srun ends its tasks
}
trap end_training USR2
trap 'echo "== job $SLURM_JOB_ID: ended by SLURM; the same command resumes"; exit 143' TERM

# SLURM runs a copy of this script: the repository is where sbatch was called.
[ -n "${SLURM_JOB_ID:-}" ] || fail "needs SLURM: sbatch run_train_simple.sh (else: python train_simple_ddp.py)"
cd "$SLURM_SUBMIT_DIR"
[ -f train_simple_ddp.py ] || fail "$PWD: not the repository; call sbatch from its folder"
gpus=${SLURM_GPUS_PER_NODE:-0} # what was asked for, as 4 or a100:4; a whole node may hold more
gpus=${gpus##*:}
[ "$gpus" -ge 1 ] || fail "the job has no GPU; leave --gpus-per-node as it is, or ask for 1 at least"
[ "${SLURM_GPUS_ON_NODE:-0}" -ge "$gpus" ] ||
    fail "$gpus GPUs asked for, ${SLURM_GPUS_ON_NODE:-0} given on $(hostname); submit again, with --exclude=$(hostname)"

if [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
elif [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && type module >/dev/null 2>&1; then
    set +u # module's own code needs that
    module load "$MODULE" || true
    set -u
fi
python -c 'import importlib.util as u; assert all(map(u.find_spec, ("torch", "encodec", "soundfile")))' 2>/dev/null ||
    fail "no Python with torch, encodec and soundfile; make .venv first (docs/levante.md)"

header="== job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST, $(date -Is), \
commit $(git describe --always --dirty 2>/dev/null || echo unknown): train_simple_ddp.py $*"
echo "$header"
echo "$header" >&2

# No OpenMP beside the workers: on a CPU they take their share of the cores themselves.
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 OMP_NUM_THREADS=1
# Wrong use is reported here, once, rather than by every worker. --device comes first: a user's own wins.
set -- --device cuda "$@"
# Ten minutes: importing torch from a cold file system can take most of them.
check=$(timeout 600 python train_simple_ddp.py --check_only --num_processes "$gpus" "$@") || {
    [ $? -ne 124 ] || fail "no answer from the check within 600 s; are the file system and the network well?"
    exit 1
}
echo "$check"

# One task a node, which starts a worker a GPU. They meet where srun runs: on the first node, the batch script's.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one node take two
export MASTER_PORT gpus
# What is done by the end decides whether to requeue.
checkpoints=$(sed -n 's/^checkpoints: //p' <<<"$check")
embeddings=$(sed -n 's/^embeddings: //p' <<<"$check")
epochs() { { grep '"epoch"' "$checkpoints/metrics.jsonl" 2>/dev/null || true; } | wc -l; }
epochs_before=$(epochs)
started=logs/.started_$SLURM_JOB_ID
touch "$started"
# shellcheck disable=SC2016 # each task puts in its own SLURM_NODEID
srun --export=ALL --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --cpu-bind=none --kill-on-bad-exit=1 \
    bash -c 'exec python -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --node_rank="$SLURM_NODEID" \
        --nproc_per_node="$gpus" --master_addr="$SLURM_LAUNCH_NODE_IPADDR" --master_port="$MASTER_PORT" "$@"' \
    task train_simple_ddp.py "$@" &
step=$!
[ -z "$warned" ] || end_training

# `wait` also returns when a signal has come; it gives the step's status as often as it is asked.
while kill -0 "$step" 2>/dev/null; do
    wait "$step" || true
done
status=0
wait "$step" || status=$?

new_embedding=$(find "$embeddings" -name '*.npy' -newer "$started" -print -quit 2>/dev/null || true)
rm -f "$started"
if [ -n "$warned" ] && [ "$status" -ne 0 ]; then
    [ "$(epochs)" != "$epochs_before" ] || [ -n "$new_embedding" ] ||
        fail "neither an epoch nor an embedding was finished before the time limit; ask for more --time"
    echo "== job $SLURM_JOB_ID: requeues itself before its time limit; the errors of the ended training are expected"
    scontrol requeue "$SLURM_JOB_ID" || fail "SLURM does not requeue this job; submit it again, it resumes"
elif [ "$status" -ne 0 ]; then
    echo "== job $SLURM_JOB_ID: status $status; the reason is at the end of the error log, logs/train_simple.err"
    exit "$status"
fi

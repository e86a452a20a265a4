#!/bin/bash
# Train on Levante (DKRZ), or on any SLURM cluster, on the 4 GPUs of a node. From the repository's folder:
#
#   sbatch -A ACCOUNT run_train_simple.sh                 # the document's training
#   sbatch -A ACCOUNT run_train_simple.sh --epochs 50     # arguments go to train_simple_ddp.py
#   sbatch -A ACCOUNT --nodes=2 run_train_simple.sh       # on the GPUs of two nodes
#   tail -f logs/train_simple.out
#
# Shortly before the time limit all processes save and leave, and the job queues itself again.
# scancel saves too, and ends it; the same command goes on from there. More: docs/levante.md
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
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR2@600
#SBATCH --requeue
#SBATCH --output=logs/train_simple.out
#SBATCH --error=logs/train_simple.err
#SBATCH --open-mode=append
set -euo pipefail

MODULE=python3 # loaded where there is neither .venv nor an active environment
SAVE_WITHIN=300 # seconds from the warning until a training that has not left by itself is ended

fail() {
    echo "run_train_simple.sh: error: $*" >&2
    exit 1
}

# SLURM's signals: a warning that comes before there is a training to stop waits for it.
warned="" cancelled="" step="" timer="" job_dir=""
trap 'warned=yes; [ -z "$step" ] || stop_training' USR2
trap 'cancelled=yes' TERM
leave() {
    local status=$?
    [ -z "$job_dir" ] || rm -rf "$job_dir"
    [ "$status" -eq 0 ] || [ -n "$cancelled" ] ||
        echo "== job ${SLURM_JOB_ID:-}: status $status; the reason is at the end of the error log, logs/train_simple.err"
}
trap leave EXIT

# Let every process save and leave, at the same step. What does not leave (it is still encoding, or it hangs)
# is ended in time; of that, what it has on disk is kept.
stop_training() {
    [ -z "$timer" ] || return 0
    local start end now delay=0 left=86400
    now=$(date +%s)
    read -r start end < <(timeout 30 squeue --noheader --jobs="$SLURM_JOB_ID" --format="%S %e") || true
    if end=$(date -d "${end:-unknown}" +%s 2>/dev/null) && start=$(date -d "$start" +%s); then
        left=$((end - now))
        # A job of a few minutes is warned as it starts: half its time is for training.
        [ "$left" -gt 700 ] || delay=$((left - (end - start) / 2))
        [ "$delay" -gt 0 ] || delay=0
    fi
    local within=$((left - delay - 15 < SAVE_WITHIN ? left - delay - 15 : SAVE_WITHIN))
    echo "== job $SLURM_JOB_ID: warned $left s before its limit, stops the training in $delay s"
    {
        sleep "$delay"
        touch "$job_dir/stop"
        sleep "$((within > 5 ? within : 5))"
        touch "$job_dir/ended"
        kill "$step" # srun ends its tasks
    } >/dev/null 2>&1 &
    timer=$!
}

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
# A mistake is told here, once, rather than by every worker. --device comes first: a user's own wins.
set -- --device cuda "$@"
timeout 120 python train_simple_ddp.py --check_only --num_processes "$gpus" "$@" || {
    [ $? -ne 124 ] || fail "no answer from the check within 120 s; are the file system and the network well?"
    exit 1
}

# Where script and workers leave word for each other (pipeline_common.job_folder). A requeued job has its old number.
job_dir=$PWD/logs/.job_$SLURM_JOB_ID
rm -rf "$job_dir"
mkdir "$job_dir"
export TRAIN_JOB_DIR=$job_dir
[ -z "$cancelled" ] || exit 143

# One task a node, which starts a worker a GPU. They meet where srun runs: on the first node, the batch script's.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one node take two
export MASTER_PORT gpus
# shellcheck disable=SC2016 # each task puts in its own SLURM_NODEID
srun --export=ALL --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --cpu-bind=none --kill-on-bad-exit=1 \
    bash -c 'exec python -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --node_rank="$SLURM_NODEID" \
        --nproc_per_node="$gpus" --master_addr="$SLURM_LAUNCH_NODE_IPADDR" --master_port="$MASTER_PORT" "$@"' \
    task train_simple_ddp.py "$@" &
step=$!

# `wait` also returns when a signal has come; it gives the step's status as often as it is asked.
[ -z "$warned" ] || stop_training
while kill -0 "$step" 2>/dev/null; do
    wait "$step" || true
done
status=0
wait "$step" || status=$?
[ -z "$timer" ] || kill "$timer" 2>/dev/null || true

if [ -n "$cancelled" ]; then
    echo "== job $SLURM_JOB_ID: ended by SLURM; the same command goes on from the last save"
    exit 143
elif [ -e "$job_dir/stopped" ] || [ -e "$job_dir/ended" ]; then
    echo "== job $SLURM_JOB_ID: queues itself again and goes on from the last save"
    scontrol requeue "$SLURM_JOB_ID" || fail "SLURM does not requeue this job; submit it again, it goes on"
elif [ "$status" -ne 0 ]; then
    # The workers' errors are above, between torchrun's and SLURM's words; the first of them is the cause.
    first=$(find "$job_dir" -name 'error_*' | sort | head -n 1)
    [ -z "$first" ] || cat "$first" >&2
    exit "$status"
fi

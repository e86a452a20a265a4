#!/bin/bash
# Train on Levante (DKRZ), or on any SLURM cluster, on the 4 GPUs of a node. From the repository's folder:
#
#   sbatch -A ACCOUNT run_train_simple.sh                 # the document's training
#   sbatch -A ACCOUNT run_train_simple.sh --epochs 50     # arguments go to train_simple_ddp.py
#   tail -f logs/train_simple.out
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
#SBATCH --output=logs/train_simple.out
#SBATCH --error=logs/train_simple.err
#SBATCH --open-mode=append
set -euo pipefail

MODULE=python3 # loaded where there is neither .venv nor an active environment

# SLURM runs a copy of this script: the repository is where sbatch was called.
cd "${SLURM_SUBMIT_DIR:-.}"
fail() { echo "run_train_simple.sh: error: $*" >&2; exit 1; }
[ -f train_simple_ddp.py ] || fail "$PWD: not the repository; call sbatch from its folder"

if [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
elif [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && type module >/dev/null 2>&1; then
    module load "$MODULE"
fi
python -c 'import torch, encodec, soundfile' 2>/dev/null ||
    fail "no Python with torch, encodec and soundfile; make .venv first: make install (on a login node)"

echo "== job ${SLURM_JOB_ID:-none} on ${SLURM_JOB_NODELIST:-$(hostname)}, $(date -Is)," \
    "commit $(git describe --always --dirty 2>/dev/null || echo unknown): train_simple_ddp.py $*"
export PYTHONUNBUFFERED=1
exec python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node="${SLURM_GPUS_ON_NODE:-4}" \
    train_simple_ddp.py "$@"

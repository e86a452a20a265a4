#!/bin/bash
# Create the dataset on Levante (DKRZ), or on any SLURM cluster. From the repository's folder:
#
#   sbatch -A ACCOUNT create_dataset_pairs_levante.sh                        # music/ -> dataset_pairs_wav/
#   sbatch -A ACCOUNT create_dataset_pairs_levante.sh --input_dir /my/music  # arguments go to the Python script
#   tail -f logs/dataset_pairs.out
#
# If the job is killed, submit it again: it resumes. See docs/levante.md.
#
#SBATCH --job-name=dataset_pairs
#SBATCH --partition=compute
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=logs/dataset_pairs.out
#SBATCH --error=logs/dataset_pairs.err
#SBATCH --open-mode=append
set -euo pipefail

MODULE=python3 # loaded if there is neither .venv nor an active environment

fail() {
    echo "create_dataset_pairs_levante.sh: error: $*" >&2
    exit 1
}

# SLURM runs a copy of this script, so the repository is the folder where sbatch was called.
[ -n "${SLURM_JOB_ID:-}" ] || fail "not a SLURM job; run sbatch $0 (without SLURM: python create_dataset_pairs_wav.py)"
cd "$SLURM_SUBMIT_DIR"
[ -f create_dataset_pairs_wav.py ] || fail "$PWD: not the repository; call sbatch from its folder"

if [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
elif [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && type module >/dev/null 2>&1; then
    set +u # the module command uses unset variables
    module load "$MODULE" || true
    set -u
fi
python -c 'import importlib.util as u; assert all(map(u.find_spec, ("soundfile", "soxr", "av", "scipy")))' 2>/dev/null ||
    fail "no Python with soundfile, soxr, av and scipy; create .venv first (docs/levante.md)"

header="== job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST, $(date -Is), \
commit $(git describe --always --dirty 2>/dev/null || echo unknown): create_dataset_pairs_wav.py $*"
echo "$header"
echo "$header" >&2
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
exec python create_dataset_pairs_wav.py --num_workers "${SLURM_CPUS_PER_TASK:-1}" "$@"

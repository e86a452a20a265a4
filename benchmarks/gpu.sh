#!/bin/bash
# Everything a GPU can show, in eight minutes at most:
#
#   bash benchmarks/gpu.sh FOLDER                      # rows are printed and appended to FOLDER/gpu.jsonl as measured
#   TEST_DEVICE=cpu bash benchmarks/gpu.sh FOLDER      # tiny sizes on a CPU, to try the script itself
#
# It needs Python (PYTHON, else python3) with torch and torchaudio 2.10 or 2.11, no network and no registry. What else
# requirements.txt lists and that Python lacks, it takes from benchmarks/wheels/. Fill that folder with wheels for the
# Python and the system of the GPU's machine; encodec has no published wheel, so build one:
#
#   pip wheel --no-deps -w benchmarks/wheels encodec==0.1.1
#   pip download --no-deps --only-binary=:all: -d benchmarks/wheels soundfile cffi pycparser av
#
# (for another Python than pip's own, add --python-version 3.12 --platform manylinux_2_28_x86_64 to the second).
set -uo pipefail

slack=1
[ "${TEST_DEVICE:-cuda}" = cuda ] || slack=10 # nothing is measured there, and a CPU may be busy
TOTAL_S=$((470 * slack))                      # and ten seconds for the table
python=${PYTHON:-python3}

fail() {
    echo "gpu.sh: error: $*" >&2
    exit 1
}

[ $# -eq 1 ] || fail "name the folder for the results: bash benchmarks/gpu.sh FOLDER"
mkdir -p "$1" || exit 1
results=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1
if compgen -G "benchmarks/wheels/*.whl" >/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" benchmarks/wheels/*.whl ||
        fail "benchmarks/wheels: cannot be installed; they must suit $("$python" --version)"
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
[ $slack -gt 1 ] ||
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
    fail "$python: torch sees no CUDA GPU here; nothing was measured (TEST_DEVICE=cpu tries the script without one)"

status=0
part() { # NAME LIMIT_S COMMAND...
    local name=$1 limit=$(($2 * slack)) left=$((TOTAL_S - SECONDS)) ended=0
    shift 2
    [ "$limit" -le "$left" ] || limit=$left
    echo "== $name, at most $limit s"
    if [ "$limit" -gt 0 ]; then
        timeout --kill-after=3 "$limit" "$@" || ended=$?
    else
        ended=124
    fi
    [ "$ended" -eq 0 ] && return
    status=1
    [ "$ended" -ne 124 ] || ended="its time was over"
    note "$name" "NOT COMPLETE: ended with $ended"
}
note() { # PART ROW
    echo "$1: $2"
    printf '{"part": "%s", "row": "%s"}\n' "$1" "$2" >>"$results/gpu.jsonl"
}
measure() { part "$1" "$2" "$python" benchmarks/gpu.py "$1" "$results" "$work"; }

note run "$(date -Is), $(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader --id=0 2>/dev/null)"
measure machine 25
measure step 45
measure encoding 35
measure training 210
measure start 20
measure precision 70
measure literal 15
# shellcheck disable=SC2016 # the inner shell puts in its arguments
part tests 60 bash -o pipefail -c '"$0" -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu.py | tee "$1"' \
    "$python" "$results/tests.log"
note tests "$(grep -E '(passed|failed|skipped|error).* in [0-9]' "$results/tests.log" | tail -1)"
"$python" benchmarks/gpu.py table "$results" "$work"
exit $status

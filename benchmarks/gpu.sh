#!/bin/bash
# Measure the project on a GPU, in at most eight minutes. Each row is printed and appended to FOLDER/gpu.jsonl at once.
#
#   bash benchmarks/gpu.sh FOLDER
#   TEST_DEVICE=cpu bash benchmarks/gpu.sh FOLDER      # test the script on a CPU, with tiny sizes
#
# It needs Python (PYTHON, else python3) with torch and torchaudio 2.10 or 2.11, but no network. It installs the wheels in
# benchmarks/wheels/ into a temporary folder. If that Python lacks other packages in requirements.txt, put wheels for it there.
# encodec has no published wheel, so build one:
#
#   pip wheel --no-deps -w benchmarks/wheels encodec==0.1.1
#   pip download --no-deps --only-binary=:all: -d benchmarks/wheels soundfile cffi pycparser av
#
# If pip's Python is a different version, add --python-version 3.12 --platform manylinux_2_28_x86_64 to the second command.
set -uo pipefail

slack=1
[ "${TEST_DEVICE:-cuda}" = cuda ] || slack=10 # a CPU only tests the script, and may be busy
TOTAL_S=$((470 * slack))                      # ten seconds are left for the table
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
        fail "benchmarks/wheels: cannot be installed; they must be for $("$python" --version)"
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
[ $slack -gt 1 ] ||
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
    fail "$python: torch sees no CUDA GPU here; nothing was measured (TEST_DEVICE=cpu tests the script without one)"

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
    ended="exit status $ended"
    [ "$ended" != "exit status 124" ] || ended="time limit reached"
    note "$name" "NOT COMPLETE: $ended"
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

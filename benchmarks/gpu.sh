#!/bin/bash
# Measure the project on a GPU, in at most eight minutes. Each row is printed and appended to FOLDER/gpu.jsonl at once.
#
#   bash benchmarks/gpu.sh FOLDER
#   TEST_DEVICE=cpu bash benchmarks/gpu.sh FOLDER      # test the script on a CPU, with tiny sizes
#
# It needs Python (PYTHON, else python3) with torch and torchaudio 2.10 or 2.11, but no network. If that Python lacks other
# packages in requirements.txt, install them where there is a network, with the same version of Python, and set PYTHONPATH:
#
#   pip install --no-deps --target /full/path encodec==0.1.1 einops soundfile cffi pycparser soxr av
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
[ $slack -gt 1 ] ||
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
    fail "$python: torch sees no CUDA GPU here; nothing was measured (TEST_DEVICE=cpu tests the script without one)"

status=0
part() { # NAME LIMIT_S COMMAND...
    local name=$1 limit=$(($2 * slack)) left=$((TOTAL_S - SECONDS)) ended=124
    shift 2
    [ "$limit" -le "$left" ] || limit=$left
    echo "== $name, at most $limit s"
    if [ "$limit" -gt 0 ]; then
        timeout --kill-after=3 "$limit" "$@"
        ended=$?
    fi
    case $ended in
        0) return ;;
        124) note "$name" "NOT COMPLETE: time limit reached" ;;
        *) note "$name" "NOT COMPLETE: exit status $ended" ;;
    esac
    status=1
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

#!/usr/bin/env bash
# Everything that a GPU has to say of the library, in one command and about ten minutes:
#
#     bash benchmarks/gpu.sh                  # results in gpu-results/, the table at the end
#     bash benchmarks/gpu.sh results-h100     # … in another folder
#     DEVICE=cpu QUICK=1 bash benchmarks/gpu.sh /tmp/try      # tries this script, measures nothing
#
# Each part is a process of its own with a time limit, so that one that fails or hangs does not keep
# the others from being measured. The exit status is the number of parts that failed; the table
# (table.md) is what docs/performance.md wants. PYTHON names another interpreter.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-gpu-results} device=${DEVICE:-cuda} python=${PYTHON:-python} failed=0
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit
rm -f "$out"/smoke.json "$out"/profile-*.json "$out"/{smoke,profile-*,command-line}.log "$out"/table.md
export PYTHONUNBUFFERED=1 PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}"
quick=${QUICK:+--quick}
limit=()
command -v timeout > /dev/null && limit=(timeout)

part() {   # part NAME SECONDS COMMAND…
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    "${limit[@]+"${limit[@]}"}" ${limit[0]:+"$seconds"} "$@" > "$out/$name.log" 2>&1
    local status=$?
    if [ $status -eq 0 ]; then
        echo "ok      $name ($((SECONDS - began)) s)"
    else
        echo "FAILED  $name (status $status after $((SECONDS - began)) s): the end of $out/$name.log"
        tail -n 5 "$out/$name.log" | sed 's/^/        /'
        failed=$((failed + 1))
    fi
}

profiled() {   # profiled NAME SECONDS OPTIONS…
    local name=$1 seconds=$2
    shift 2
    part "profile-$name" "$seconds" "$python" "$here/gpu_profile.py" --device "$device" $quick \
        --output "$out/profile-$name.json" "$@"
}

command_line() {
    local run=$out/command-line/run program=("$python" -m ddpm_lib.cli)
    rm -rf "$out/command-line" && mkdir -p "$out/command-line" || return
    "${program[@]}" train shapes --output-dir "$run" --device "$device" --max-steps "$1" --batch-size 16 \
        --compile false --no-progress &&
        "${program[@]}" sample "$run" -n 4 --device "$device" --num-steps 2 &&
        "${program[@]}" status "$run"
}

if [ "$device" = cuda ]; then
    command -v nvidia-smi > /dev/null &&
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
    "$python" -c 'import torch; print("torch", torch.__version__, "for CUDA", torch.version.cuda)
raise SystemExit("This torch sees no GPU." if not torch.cuda.is_available() else 0)' || exit
fi
part smoke 400 "$python" "$here/gpu_smoke.py" --device "$device" $quick --output "$out/smoke.json"
profiled 128-compiled 300 --batch 128
if [ -z "${QUICK:-}" ]; then
    profiled 032-compiled 180 --batch 32
    profiled 032-graph 180 --batch 32 --graph
    profiled 128-graph 180 --batch 128 --graph
    profiled 128-eager 120 --batch 128 --compile no
    profiled 512-compiled 240 --batch 512
fi
steps=200 && [ -n "${QUICK:-}" ] && steps=2
export -f command_line && export out device python
part command-line 180 bash -c "command_line $steps"
echo
"$python" "$here/gpu_table.py" "$out" | tee "$out/table.md"
exit $failed

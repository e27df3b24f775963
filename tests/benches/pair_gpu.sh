#!/bin/sh
# How much of a stage's communication hides under the computing of a forward and a backward, on one GPU: docs/distributed.md, "A pair on a GPU".
#
#   tests/benches/pair_gpu.sh build FOLDER    # where the compiler is: stages of tests/benches/pair.lode, and the runner
#   tests/benches/pair_gpu.sh run FOLDER      # where the GPU is
#
# FOLDER is all that the second machine needs. `LODE` and `RUNNER` name other binaries than those of target/.
set -eu
folder=$2
if [ "$1" = build ]; then
  root=$(cd "$(dirname "$0")/../.." && pwd)
  lode=${LODE:-$root/target/debug/lode}
  runner=${RUNNER:-$root/target/release/examples/pair_gpu}
  mkdir -p "$folder"
  for top in 2 4; do
    "$lode" build "$root/tests/benches/pair.lode" --set top=$top --ranks 3 --layout 'E|tttt|L' --expert-parallel 1 --target sm_90a --lib none \
      -o "$folder/top$top"
  done
  cp "$runner" "$folder/pair_gpu"
  cp "$0" "$folder/"
  exit
fi
status=0
timeout 100 "$folder/pair_gpu" "$folder/top2/pair.1.lodelib" B=1 T=8192 trace="${OUT:-$folder}/pair.trace.json" || status=$?
timeout 100 "$folder/pair_gpu" "$folder/top4/pair.1.lodelib" B=1 T=8192 || status=$?
timeout 100 "$folder/pair_gpu" "$folder/top2/pair.1.lodelib" B=1 T=8192 link=device piece=128 || status=$?
exit $status

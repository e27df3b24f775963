#!/bin/sh
# What the optimiser gives on the host: time of strata's gradients, and memory of its training step at T = 8192, with and without it.
# Without it attention is its definition and every op a kernel. Needs a release build.
set -eu
cd "$(dirname "$0")/../.."
lode=${LODE:-target/release/lode}
model=models/strata/model.lode
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
ms() { "$lode" bench $model --dims B=8,T=256 --entry grad "$@" | sed 's/.*grad: \([0-9.]*\) ms.*/\1/'; }
# A plan above the limit is refused with its size.
mib() {
  head -c 100000 /dev/zero > "$out/text"
  "$lode" train $model --data "$out/text" --batch 1 --seq 8192 --steps 1 --memory-limit 1 --out "$out/run" "$@" 2>&1 |
    sed -n 's/.*the plan needs \([0-9]*\) MiB.*/\1/p'
}
with=$(ms)
without=$(ms --no-optimize)
echo "gradients of 8 x 256 tokens: $with ms, $without ms without; ratio $(awk "BEGIN { printf \"%.2f\", $without / $with }") (bar 1.5)"
with=$(mib)
without=$(mib --no-optimize)
echo "a training step of 1 x 8192 tokens: $with MiB, $without MiB without; ratio $(awk "BEGIN { printf \"%.3f\", $with / $without }") (bar 0.2)"

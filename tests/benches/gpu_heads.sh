#!/bin/sh
# Native sparse attention in bf16 with several numbers of heads that share keys, on a GPU against the host: strata_long small, so few blocks that all are chosen
# and both experts used, as roundings would choose others.
#
#   tests/benches/gpu_heads.sh build FOLDER    # where the compiler is
#   tests/benches/gpu_heads.sh check FOLDER    # where the GPU is
#
# `LODE` and `RUNNER` name other binaries than those of target/. Gradients of bf16 are within 2 %, twice the same bits.
set -eu
do=$1
folder=$2
problem="batch=2 seq=300 steps=3"
names="heads_16_1 heads_8_1 heads_8_2 heads_4_1 heads_2_2"

if [ "$do" = build ]; then
  root=$(cd "$(dirname "$0")/../.." && pwd)
  lode=${LODE:-$root/target/debug/lode}
  runner=${RUNNER:-$root/target/release/examples/on_gpu}
  mkdir -p "$folder"
  for n in $names; do
    kv=${n##*_}
    heads=${n#heads_}
    heads=${heads%_*}
    sed "s/strata_long(/$n(/g" "$root/tests/benches/strata_long.lode" >"$folder/$n.lode"
    set -- --set layers=2 --set d=256 --set heads="$heads" --set kv="$kv" --set experts=2 --set top=2 --set ff=128 --set count=6 --set window=100
    "$lode" build "$folder/$n.lode" "$@" --lib c -o "$folder/host"
    "$lode" build "$folder/$n.lode" "$@" --lib c --no-optimize -o "$folder/plain"
    "$lode" build "$folder/$n.lode" "$@" --target sm_90a --lib none -o "$folder/gpu"
  done
  # shellcheck disable=SC2086
  "$runner" record "$folder" $names $problem
  cp "$runner" "$folder/on_gpu"
  cp "$0" "$folder/"
  rm -r "$folder/host" "$folder/plain"
  exit
fi

# shellcheck disable=SC2086
"$folder/on_gpu" check "$folder" $names $problem near=0.02

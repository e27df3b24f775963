#!/bin/sh
# How long the compiler takes: `lode check` of deepseek_v3, source to host objects for 6 and for 61 layers of its 671B config, and to PTX. Medians
# of several runs. Needs a release build.
set -eu
cd "$(dirname "$0")/../.."
lode=${LODE:-target/release/lode}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
middle() { sort -n | sed -n "$((($1 + 1) / 2))p"; }
now() { date +%s%N; }

for i in 1 2 3 4 5 6 7; do
  start=$(now)
  "$lode" check models/deepseek_v3/model.lode >/dev/null
  echo $((($(now) - start) / 1000000))
done | middle 7 | sed 's/.*/check: & ms (bar 50)/'

build() {
  for i in 1 2 3 4 5; do
    start=$(now)
    "$lode" build models/deepseek_v3/model.lode --set num_hidden_layers="$1" -o "$out" >/dev/null
    echo $((($(now) - start) / 1000000))
  done | middle 5
}
six=$(build 6)
all=$(build 61)
echo "build, 6 layers: $six ms; 61 layers: $all ms (bar 2000); ratio $(awk "BEGIN { printf \"%.2f\", $all / $six }") (bar 1.2)"

# Source to PTX of each shipped model, with all that a library for a GPU holds.
for m in llama strata qwen3_moe deepseek_v3; do
  for i in 1 2 3; do
    start=$(now)
    "$lode" build "models/$m/model.lode" --target sm_90a --lib none -o "$out" >/dev/null
    echo $((($(now) - start) / 1000000))
  done | middle 3 | sed "s/.*/$m to PTX: & ms (bar 1000)/"
done

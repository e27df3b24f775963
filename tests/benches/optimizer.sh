#!/bin/sh
# What the optimiser gives on the host: time of strata's gradients, and memory of its training step at T = 8192, with and without it.
# Without it attention is its definition and every op a kernel. Ends with 1 if a bar is broken or something could not be measured.
# Needs a release build; ROUNDS (3) is how often each is timed, in turns, of which the least counts.
set -eu
cd "$(dirname "$0")/../.."
lode=${LODE:-target/release/lode}
model=models/strata/model.lode
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# What a command printed, down to the number that the expression keeps; anything else ends the bench.
number() {
  found=$(sed -n "s/$1/\\1/p" "$out/said")
  case $found in
    "" | *[!0-9.]*) echo "no number like '$1' in:" >&2; cat "$out/said" >&2; exit 1 ;;
  esac
  echo "$found"
}
least() { awk "BEGIN { print ($1 == 0 || $2 < $1) ? $2 : $1 }"; }

# The least time of a call. # Units: ms.
ms() {
  "$lode" bench $model --dims B=8,T=256 --entry grad --seconds 4 "$@" > "$out/said"
  number '.* \([0-9.]*\) ms least of .*'
}
# A plan above the limit is refused with its size. # Units: MiB.
mib() {
  head -c 100000 /dev/zero > "$out/text"
  if "$lode" train $model --data "$out/text" --batch 1 --seq 8192 --steps 1 --memory-limit 1 --out "$out/run" "$@" > "$out/said" 2>&1; then
    echo "a plan of 1 MiB was accepted" >&2
    exit 1
  fi
  number '.*the plan needs \([0-9]*\) MiB.*'
}
# What it is, both figures, their ratio, how it has to compare with the bar, the bar.
judge() {
  awk "BEGIN { r = $4 / $5; ok = r $6 $7; printf \"%s: %s with, %s without; ratio %.3f (bar $6 %s)%s\n\", \"$1\", \"$2\", \"$3\", r, $7, ok ? \"\" : \": BROKEN\"; exit !ok }"
}

with=0 without=0
for _ in $(seq "${ROUNDS:-3}"); do
  one=$(ms)
  with=$(least "$with" "$one")
  one=$(ms --no-optimize)
  without=$(least "$without" "$one")
done
failed=0
judge "gradients of 8 x 256 tokens" "$with ms" "$without ms" "$without" "$with" ">=" 1.5 || failed=1
with=$(mib)
without=$(mib --no-optimize)
judge "a training step of 1 x 8192 tokens" "$with MiB" "$without MiB" "$with" "$without" "<=" 0.2 || failed=1
exit $failed

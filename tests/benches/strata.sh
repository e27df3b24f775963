#!/bin/sh
# Trains models/strata, as it is shipped, on a text and says how long that took and what it reached.
#
#   tests/benches/strata.sh TEXT [STEPS]
#
# Needs a release build. On tiny Shakespeare the bar is 1.75 nats a byte in 10 minutes on 2 cores, with at most 1 M parameters.
set -eu
text=$(realpath "$1")
steps=${2:-1000}
cd "$(dirname "$0")/../.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
start=$(date +%s)
"${LODE:-target/release/lode}" train models/strata/model.lode --data "$text" --steps "$steps" --eval-every 200 --out "$out"
seconds=$(($(date +%s) - start))
echo "steps and validation losses (nats a byte):"
sed -n 's/.*"step":\([0-9]*\).*"val_loss":\([0-9][0-9.]*\).*/  \1 \2/p' "$out/metrics.jsonl"
echo "$steps steps in $seconds s"

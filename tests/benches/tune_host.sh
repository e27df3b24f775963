#!/bin/sh
# Measures the shipped table of costs of a host, compiler/tile/tuning/host.txt, on the machine at hand: the shipped models as they are trained, and a llama of 135 M
# parameters, whose products are large. Each is measured ROUNDS (3) times for BUDGET (60s) each; of a bucket the shortest time is kept, as whatever else the machine
# does only adds. What took less than LEAST (100000) ns is left to the roofline: on a machine with other programs such a time is that of waking a thread.
# Needs a release build; what is left in the table is printed. Run it on a quiet machine.
set -eu
cd "$(dirname "$0")/../.."
lode=${LODE:-target/release/lode}
table=compiler/tile/tuning/host.txt
new=$(mktemp)
comments=$(grep '^#' $table)
trap 'rm -f "$new"' EXIT
grep -v '^time ' $table | grep -v '^#' > "$new"

tune() {
  "$lode" tune "$@" --budget "${BUDGET:-60s}" --table "$new"
}
for _ in $(seq "${ROUNDS:-3}"); do
  tune models/strata/model.lode
  tune models/strata/model.lode --dims B=1,T=2048
  tune models/llama/model.lode
  tune models/llama/model.lode --config models/llama/smollm2_135m.json --dims B=1,T=256
  tune models/qwen3_moe/model.lode
  tune models/deepseek_v3/model.lode --config models/deepseek_v3/tiny.json
done
{
  # Comments stay where they were.
  grep -v '^time ' "$new" | awk -v comments="$comments" '{ print } /^device / { print comments }'
  awk -v least="${LEAST:-100000}" '/^time / && $5 >= least' "$new"
} > $table
grep -c '^time ' $table

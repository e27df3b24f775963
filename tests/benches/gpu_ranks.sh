#!/bin/sh
# Training over GPUs: strata and deepseek_v3, small, on one process and one GPU, and over NCCL on N processes with a GPU each. Says a line a run: whether the
# losses of the micro-batches have the bits of the one process (of all steps where each stage lives once, else of the first, whose parameters are the same), how
# long a step takes, and what ranks send each other; and that a run whose rank is killed ends and goes on. Ends with 1 if one differs that may not.
# Usage: tests/benches/gpu_ranks.sh TEXT STEPS OUT; LODE names the binary. N=2 (ranks), FABRIC=nccl, BACKEND=cuda, MODELS="strata deepseek_v3" can be set: FABRIC=tcp takes
# every message over the host, also with one GPU for all; BACKEND=host FABRIC=tcp needs no GPU. NODE=1 is how many ranks share a machine where several are pretended. RUNS="dualpipev pairs apart" are the runs, without it all.
set -u
text=$1 steps=$2 out=$3
lode=${LODE:-target/release/lode} n=${N:-2} fabric=${FABRIC:-nccl} backend=${BACKEND:-cuda} bad=0
size=${SIZE:---batch 8 --micro-batches 8 --seq 128}
strata="models/strata/model.lode"
deepseek_v3="models/deepseek_v3/model.lode --set vocab_size=256 --set hidden_size=32 --set intermediate_size=48 --set moe_intermediate_size=16
  --set num_hidden_layers=4 --set first_k_dense_replace=1 --set num_attention_heads=4 --set q_lora_rank=16 --set kv_lora_rank=8 --set qk_nope_head_dim=8
  --set qk_rope_head_dim=4 --set v_head_dim=8 --set n_routed_experts=8 --set num_experts_per_tok=2 --set n_group=4 --set topk_group=2 --set initializer_range=0.1"
losses() { sed -n 's/.*"micro_losses":\(\[[^]]*\]\).*/\1/p' "$out/$1/metrics.jsonl" | head -n "$2"; }
# The time between two steps, from how many tokens a second there were since the start.
pace() {
  sed -n 's/.*"step":\([0-9]*\).*"tokens_per_s":\([0-9.e+-]*\).*/\1 \2/p' "$out/$1/metrics.jsonl" |
    awk 'NR == 1 { tokens = 1 } { t = $1 / $2; if ($1 == 3) { a = t; s = $1 } z = t; e = $1 } END { if (e > s) printf "%.6g", (z - a) / (e - s) }'
}
# Whether all of these runs are asked for.
wants() {
  for asked in "$@"; do
    case " ${RUNS:-$asked} " in *" $asked "*) ;; *) return 1 ;; esac
  done
}
# run NAME STEPS-THAT-MUST-EQUAL COMMAND…: 0 for a comparison of the first step that is told and not asked for.
run() {
  name=$1 same=$2
  shift 2
  [ "$name" = one ] || wants "$name" || return
  rm -rf "${out:?}/$name"
  if ! timeout "${LIMIT:-100}" "$@" --steps "$steps" --out "$out/$name" >"$out/$name.log" 2>&1; then
    echo "$model $name: FAILED"
    tail -n 5 "$out/$name.log"
    bad=1
    return
  fi
  first=$(losses "$name" 1)
  [ -n "$first" ] || { echo "$model $name: no losses of micro-batches"; bad=1; return; }
  [ "$first" = "$(losses one 1)" ] && told="losses of the first step as on one" || told="losses of the first step DIFFER"
  if [ "$same" -gt 1 ]; then
    [ "$(losses "$name" "$same")" = "$(losses one "$same")" ] && told="losses of $same steps as on one" || told="losses of $same steps DIFFER ($told)"
  fi
  case $told in *DIFFER*) [ "$same" = 0 ] || bad=1 ;; esac
  # A token takes this long; a step has so many.
  step=$(awk -v t="$(pace "$name")" -v n="$tokens" 'BEGIN { printf "%.2f", t * n * 1e3 }')
  echo "$model $name: $told; $step ms a step; $(sed -n 's/^\(experts: \)*ranks send/ranks send/p' "$out/$name.log" | tr '\n' ';')"
}
# The processes whose parent is $1.
children() { for p in /proc/[0-9]*; do awk -v of="$1" '$4 == of { print $1 }' "$p/stat" 2>/dev/null; done; }
# killed COMMAND…: one rank is killed in the middle; the others have to end and say so, and another start goes on from the last checkpoint.
killed() {
  rm -rf "${out:?}/killed"
  "$@" --steps 1000000 --save-every 5 --timeout 60 --out "$out/killed" >"$out/killed.log" 2>&1 &
  pid=$!
  for _ in $(seq 600); do
    done=$(grep -c step "$out/killed/metrics.jsonl" 2>/dev/null)
    [ "${done:-0}" -gt 12 ] && break
    sleep 0.1
  done
  rank=$(children "$pid" | tail -n 1)
  begin=$(date +%s)
  kill -KILL "${rank:-$pid}"
  wait "$pid"
  code=$?
  told=$(grep -c "is gone, before\|gave up" "$out/killed.log")
  at=$(wc -l <"$out/killed/metrics.jsonl")
  [ "$code" = 1 ] && [ "$told" -gt 0 ] && good="the others end after $(($(date +%s) - begin)) s and say why" || good="WRONG: code $code, $(tail -n 2 "$out/killed.log")"
  timeout "${LIMIT:-100}" "$@" --steps "$((at + 5))" --resume --out "$out/killed" >"$out/resumed.log" 2>&1 &&
    from=$(grep "going on from step" "$out/resumed.log") || from="WRONG: $(tail -n 2 "$out/resumed.log")"
  echo "$model killed at step $at: $good; $from"
  case $good$from in *WRONG*) bad=1 ;; esac
}
mkdir -p "$out"
tokens=$(echo "$size" | awk '{ for (i = 1; i < NF; i++) { if ($i == "--batch") b = $(i + 1); if ($i == "--seq") s = $(i + 1) } print b * s }')
for model in ${MODELS:-strata deepseek_v3}; do
  eval "source=\$$model"
  args="train $source --data $text $size --sample 0 --backend $backend"
  over="$lode launch -n $n $lode $args --fabric $fabric"
  run one 1 $lode $args --ranks 1
  [ "$backend" = cuda ] && [ "$fabric" = nccl ] && run nccl-alone "$steps" $lode $args --ranks 1 --fabric nccl
  run pipeline "$steps" $over --schedule 1f1b
  run zb1p "$steps" $over --schedule zb1p
  run dualpipev "$steps" $over --schedule dualpipev --ranks "$n"
  run dualpipe 1 $over --schedule dualpipe
  run replicas 1 $over --ranks 1 --replicas "$n"
  run whole-updates 1 $over --ranks 1 --replicas "$n" --whole-updates
  run experts 0 $over --ranks 1 --expert-parallel "$n"
  # Forward and backward at once, and the same stages one after the other: the same bits, in less time if rows take long.
  run pairs 0 $over --ranks 1 --expert-parallel "$n" --schedule dualpipev
  run apart 0 $over --ranks 1 --expert-parallel "$n" --schedule zbv
  if wants pairs apart; then
    [ "$backend" != cuda ] || grep -q "^pairs " "$out/pairs.log" || { echo "$model: no pair ran as one list"; bad=1; }
    [ "$(losses pairs "$steps")" = "$(losses apart "$steps")" ] && echo "$model: pairs and one after the other alike in all steps; $(grep "^pairs " "$out/pairs.log")" ||
      { echo "$model: pairs and one after the other DIFFER"; bad=1; }
  fi
  # As if every NODE ranks shared a machine: a row that several experts of another read crosses once, and the bits are the same.
  run nodes 0 $over --ranks 1 --expert-parallel "$n" --ranks-per-node "${NODE:-1}"
  run nodes-pairs 0 $over --ranks 1 --expert-parallel "$n" --schedule dualpipev --ranks-per-node "${NODE:-1}"
  for ways in "experts nodes" "pairs nodes-pairs"; do
    wants $ways || continue
    [ "$(losses "${ways% *}" "$steps")" = "$(losses "${ways#* }" "$steps")" ] && echo "$model ${ways% *}: all steps alike on one node and on several" ||
      { echo "$model ${ways% *}: one node and several DIFFER"; bad=1; }
  done
  ! wants killed || killed $over --schedule 1f1b
  # Copies whose updates are shared or whole, and the same over the host, have one way to sum.
  ! wants replicas whole-updates || [ "$(losses replicas "$steps")" = "$(losses whole-updates "$steps")" ] || { echo "$model: shared and whole updates DIFFER"; bad=1; }
  if [ "$fabric" = nccl ]; then
    tcp="$lode launch -n $n $lode $args --fabric tcp"
    run tcp-pipeline "$steps" $tcp --schedule 1f1b
    run tcp-experts 0 $tcp --ranks 1 --expert-parallel "$n"
    run tcp-replicas 1 $tcp --ranks 1 --replicas "$n"
    for way in replicas experts; do
      wants $way tcp-$way || continue
      [ "$(losses $way "$steps")" = "$(losses tcp-$way "$steps")" ] && echo "$model $way: all steps alike over NCCL and TCP" || { echo "$model $way: NCCL and TCP DIFFER"; bad=1; }
    done
  fi
done
exit $bad

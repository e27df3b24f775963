#!/bin/sh
# Training over MPI by hand: strata and deepseek_v3, tiny, on 2, 4 and 8 ranks over threads, TCP and MPI. Each micro-batch's loss of the first
# step has the bits of the single process (with 1f1b those of all steps), and checkpoints are the same files. Says a line a run; ends with 1 at
# the first difference. The same with experts divided over 2 and 4 replicas. Needs libopenmpi-dev and openmpi-bin.
# Usage: tests/benches/ranks_mpi.sh TEXT [RANKS…]; LODE names a binary that is built already, MODELS says which models.
set -eu
text=$1
shift
lode=${LODE:-target/release/lode}
[ -n "${LODE:-}" ] || cargo build --release -p driver --features mpi
out=$(mktemp -d)
export OMPI_MCA_mpi_yield_when_idle=1
strata="models/strata/model.lode --set layers=8 --set d=32 --set heads=2 --set kv=1 --set dh=16 --set experts=4 --set ff=16"
deepseek_v3="models/deepseek_v3/model.lode --set vocab_size=256 --set hidden_size=32 --set intermediate_size=32
  --set moe_intermediate_size=16 --set num_attention_heads=2 --set q_lora_rank=16 --set kv_lora_rank=16 --set qk_nope_head_dim=8
  --set qk_rope_head_dim=8 --set v_head_dim=8 --set n_routed_experts=8 --set num_experts_per_tok=2 --set n_group=4 --set topk_group=2
  --set num_hidden_layers=8 --set first_k_dense_replace=1"
losses() { sed -n 's/.*"micro_losses":\(\[[^]]*\]\).*/\1/p' "$out/$1/metrics.jsonl" | head -n "$2"; }
for name in ${MODELS:-strata deepseek_v3}; do
  eval "model=\$$name"
  args="train $model --data $text --batch 16 --micro-batches 16 --seq 64 --steps 3 --sample 0 --check-messages"
  "$lode" $args --ranks 1 --out "$out/one" >"$out/log" 2>&1
  for ranks in ${*:-2 4 8}; do
    for schedule in 1f1b dualpipe; do
      s="--schedule $schedule"
      "$lode" $args $s --ranks "$ranks" --out "$out/threads" >"$out/log" 2>&1
      "$lode" launch -n "$ranks" "$lode" $args $s --out "$out/tcp" >"$out/log" 2>&1
      mpirun -n "$ranks" --oversubscribe --allow-run-as-root "$lode" $args $s --fabric mpi --out "$out/mpi" >"$out/log" 2>&1
      steps=1
      [ $schedule = dualpipe ] || steps=3
      for way in threads tcp mpi; do
        [ "$(losses one $steps)" = "$(losses $way $steps)" ] || { echo "$name $schedule $ranks $way: other losses"; exit 1; }
        for f in "$out"/threads/step-*/*.safetensors; do cmp "$f" "$out/$way/${f#"$out"/threads/}"; done
      done
      echo "$name $schedule on $ranks ranks: $(losses mpi 1 | tr ',' '\n' | wc -l) losses of $steps steps as on one; threads, tcp, mpi alike"
      rm -r "$out"/threads "$out"/tcp "$out"/mpi
    done
  done
  for experts in 2 4; do
    s="--expert-parallel $experts"
    "$lode" $args $s --out "$out/threads" >"$out/log" 2>&1
    "$lode" launch -n "$experts" "$lode" $args $s --out "$out/tcp" >"$out/log" 2>&1
    mpirun -n "$experts" --oversubscribe --allow-run-as-root "$lode" $args $s --fabric mpi --out "$out/mpi" >"$out/log" 2>&1
    for way in threads tcp mpi; do
      [ "$(losses one 1)" = "$(losses $way 1)" ] || { echo "$name experts over $experts $way: other losses"; exit 1; }
      for f in "$out"/threads/step-*/*.safetensors; do cmp "$f" "$out/$way/${f#"$out"/threads/}"; done
    done
    echo "$name experts over $experts: losses of 1 step as on one; threads, tcp, mpi alike; $(sed -n 's/^experts: //p' "$out/log")"
    rm -r "$out"/threads "$out"/tcp "$out"/mpi
  done
  rm -r "$out/one"
done
rm -r "$out"

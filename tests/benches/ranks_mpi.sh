#!/bin/sh
# Training over MPI by hand: the validation loss of 2, 4 and 8 ranks over MPI against threads of one process, for strata and deepseek_v3, tiny.
# Needs libopenmpi-dev and openmpi-bin. Usage: tests/benches/ranks_mpi.sh TEXT; LODE names a binary that is
# built already.
set -eu
text=$1
lode=${LODE:-target/release/lode}
[ -n "${LODE:-}" ] || cargo build --release -p driver --features mpi
out=$(mktemp -d)
export OMPI_MCA_mpi_yield_when_idle=1
strata="models/strata/model.lode --set layers=8 --set d=32 --set heads=2 --set kv=1 --set dh=16 --set experts=4 --set ff=16"
deepseek="models/deepseek_v3/model.lode --set vocab_size=256 --set hidden_size=32 --set intermediate_size=32
  --set moe_intermediate_size=16 --set num_attention_heads=2 --set q_lora_rank=16 --set kv_lora_rank=16 --set qk_nope_head_dim=8
  --set qk_rope_head_dim=8 --set v_head_dim=8 --set n_routed_experts=8 --set num_experts_per_tok=2 --set n_group=4 --set topk_group=2
  --set num_hidden_layers=8 --set first_k_dense_replace=1"
for model in "$strata" "$deepseek"; do
  for ranks in 2 4 8; do
    for schedule in 1f1b dualpipe; do
      args="train $model --data $text --batch 16 --micro-batches 16 --seq 64 --steps 3 --schedule $schedule --check-messages"
      a=$("$lode" $args --ranks $ranks --out "$out/threads" 2>/dev/null)
      b=$(mpirun -n $ranks --oversubscribe --allow-run-as-root "$lode" $args --fabric mpi --out "$out/mpi" 2>/dev/null)
      echo "${model%% *} $schedule on $ranks ranks: threads $a, mpi $b"
      for f in "$out"/threads/step-*/*.safetensors; do cmp "$f" "$out/mpi/${f#"$out"/threads/}"; done
      rm -r "$out"/threads "$out"/mpi
    done
  done
done
rm -r "$out"

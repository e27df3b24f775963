#!/bin/sh
# Measures models in bf16 on a GPU for the shipped table of costs of one, compiler/tile/tuning/sm_90a.txt: a llama of 119 M parameters, strata with 12 heads of 64, and
# deepseek_v3 with 16 experts.
#
#   tests/benches/tune_gpu.sh measure FOLDER    # where the GPU is: FOLDER/table.txt, the shipped table with what was found; BUDGET (28s) a model, of which compiling takes about half
#   tests/benches/tune_gpu.sh merge FOLDER      # anywhere: FOLDER/table.txt becomes the shipped table
#
# Of a bucket the shorter time counts. What took less than LEAST (10000) ns is left to the roofline: alone, such a kernel is mostly started. Taken over are the steps whose
# extents say what they do, products and attention in bf16 and choices (KEEP); maps with equal arithmetic and traffic may be of any kind. SKIP leaves out more.
set -eu
do=$1
folder=$(realpath "$2")
cd "$(dirname "$0")/../.."
lode=${LODE:-target/release/lode}
shipped=compiler/tile/tuning/sm_90a.txt
table=$folder/table.txt

if [ "$do" = merge ]; then
  new=$(mktemp)
  trap 'rm -f "$new"' EXIT
  keep=${KEEP:-'^(product|grouped_product|grouped_outer|attend|attend_grad) bf16 |^topk '}
  # Comments, the device and its rates stay.
  awk -v least="${LEAST:-10000}" -v keep="$keep" -v skip="${SKIP:-^$}" '
    FNR == 1 { file += 1 }
    file == 1 && !/^time/ { print }
    { key = $2 " " $3 " " $4 }
    file == 1 && /^time/ { known[key] = 1 }
    file == 2 && /^time/ && (key in known || $5 >= least && key ~ keep && key !~ skip) { print }' $shipped "$table" > "$new"
  cat "$new" > $shipped
  grep -c '^time ' $shipped
  exit
fi

mkdir -p "$folder"
cp $shipped "$table"
tune() {
  model=$1
  shift
  set -- $(echo "$@" | sed 's/[^ ]*=/--set &/g')
  sed 's/^dims B, T$/&\nprecision { storage = f32, compute = bf16 }/' "models/$model/model.lode" > "$folder/$model.lode"
  timeout 120 "$lode" tune "$folder/$model.lode" "$@" --dims "$dims" --backend cuda --budget "${BUDGET:-28s}" --table "$table"
}
dims=B=8,T=2048 tune llama hidden_size=768 num_hidden_layers=15 intermediate_size=2048 num_attention_heads=12 num_key_value_heads=4 \
  head_dim=64 vocab_size=32000 tie_word_embeddings=true
dims=B=4,T=4096 tune strata d=768 heads=12 kv=4 dh=64 ff=512 experts=16 top=4
dims=B=2,T=4096 tune deepseek_v3 vocab_size=32000 hidden_size=2048 intermediate_size=6144 moe_intermediate_size=1024 num_hidden_layers=3 \
  first_k_dense_replace=1 num_attention_heads=16 q_lora_rank=768 n_routed_experts=16 num_experts_per_tok=8 n_group=8 topk_group=4

#!/bin/sh
# Every shipped model, small, in f32, in bf16, Llama with products in tf32 and DeepSeek-V3 with products of e4m3 codes, on a GPU against the host, and how fast launches are.
#
#   tests/benches/gpu_models.sh build FOLDER    # where the compiler is: libraries for both, what the host computes, and a runner
#   tests/benches/gpu_models.sh check FOLDER    # where the GPU is: correctness first, then figures
#
# FOLDER is all that the second machine needs; there is no compiler in it. `LODE` and `RUNNER` name other binaries than those of target/.
set -eu
do=$1
folder=$2
models="llama llama_tf32 llama_bf16 strata strata_bf16 qwen3_moe qwen3_moe_bf16 deepseek_v3 deepseek_v3_bf16 deepseek_v3_fp8"

# In bf16 all experts and blocks are chosen, as roundings would choose others, and heads are as wide as tensor cores multiply.
settings() {
  case $1 in
    llama | llama_tf32) echo num_hidden_layers=2 vocab_size=32 hidden_size=32 intermediate_size=48 num_attention_heads=4 head_dim=16 ;;
    strata) echo layers=2 vocab=32 d=32 heads=4 kv=2 dh=8 experts=4 ff=16 length=8 stride=4 size=8 count=3 window=12 ;;
    qwen3_moe) echo num_hidden_layers=2 vocab_size=32 hidden_size=32 moe_intermediate_size=16 head_dim=8 num_experts=4 ;;
    deepseek_v3)
      echo vocab_size=32 hidden_size=32 intermediate_size=48 moe_intermediate_size=16 num_hidden_layers=3 \
        first_k_dense_replace=1 num_attention_heads=4 q_lora_rank=16 kv_lora_rank=8 qk_nope_head_dim=8 qk_rope_head_dim=4 \
        v_head_dim=8 n_routed_experts=8 num_experts_per_tok=2 n_group=4 topk_group=2 initializer_range=0.1
      ;;
    llama_bf16) echo num_hidden_layers=2 vocab_size=32 hidden_size=192 intermediate_size=256 num_attention_heads=4 num_key_value_heads=2 head_dim=96 ;;
    strata_bf16) echo layers=2 vocab=32 d=128 heads=4 kv=2 dh=64 experts=2 top=2 ff=64 length=8 stride=4 size=8 count=6 window=12 ;;
    qwen3_moe_bf16) echo num_hidden_layers=2 vocab_size=32 hidden_size=128 moe_intermediate_size=64 head_dim=64 num_experts=4 num_experts_per_tok=4 ;;
    deepseek_v3_bf16 | deepseek_v3_fp8)
      echo vocab_size=32 hidden_size=256 intermediate_size=256 moe_intermediate_size=128 num_hidden_layers=2 \
        first_k_dense_replace=1 num_attention_heads=2 q_lora_rank=128 kv_lora_rank=128 qk_nope_head_dim=64 qk_rope_head_dim=32 \
        v_head_dim=64 n_routed_experts=4 num_experts_per_tok=4 n_group=1 topk_group=1 initializer_range=0.06
      [ "$1" = deepseek_v3_bf16 ] || echo fp8_block=128
      ;;
  esac
}

if [ "$do" = build ]; then
  root=$(cd "$(dirname "$0")/../.." && pwd)
  lode=${LODE:-$root/target/debug/lode}
  runner=${RUNNER:-$root/target/release/examples/on_gpu}
  mkdir -p "$folder"
  for m in $models; do
    set --
    for s in $(settings "$m"); do set -- "$@" --set "$s"; done
    kind=${m##*_}
    case $kind in
      tf32) precision="matmul = tf32" ;;
      bf16 | fp8) precision="compute = bf16" ;;
      *) precision= ;;
    esac
    model=$root/models/$m/model.lode
    if [ "$precision" ]; then
      base=${m%_"$kind"}
      model=$folder/$m.lode
      sed -e "s/^dims B, T$/&\nprecision { $precision }/" -e "s/\b$base(/$m(/" "$root/models/$base/model.lode" >"$model"
    fi
    "$lode" build "$model" "$@" --lib c -o "$folder/host"
    "$lode" build "$model" "$@" --lib c --no-optimize -o "$folder/plain"
    "$lode" build "$model" "$@" --target sm_90a --lib none -o "$folder/gpu"
  done
  "$runner" record "$folder" $models
  cp "$runner" "$folder/on_gpu"
  cp "$0" "$folder/"
  rm -rf "$folder/host" "$folder/plain" "$folder"/*.lode
  exit
fi

runner=$folder/on_gpu
status=0
timeout 300 "$runner" check "$folder" $models || status=$?
for m in $models; do
  for entry in grad update; do
    timeout 60 "$runner" time "$folder/gpu/$m.lodelib" $entry B=2 T=45 || status=$?
  done
done
exit $status

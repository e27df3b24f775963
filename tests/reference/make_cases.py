"""Makes reference cases with Hugging Face's models: random weights, tokens, logits in f32.

    python -m venv /tmp/venv && /tmp/venv/bin/pip install torch transformers safetensors numpy
    /tmp/venv/bin/python tests/reference/make_cases.py OUT_DIR

Each case is a folder: config.json and model.safetensors as `save_pretrained` writes them, tokens.npy (i32), logits.npy (f32). The
smallest of each model is kept in tests/reference/cases. Transformers 5 holds a layer's experts in two tensors (`experts.gate_up_proj`,
`experts.down_proj`) while it runs, and writes one of each per expert, under the names of published checkpoints.
Compare with:

    lode run models/M/model.lode --config CASE/config.json --weights CASE/model.safetensors \
        -i tokens=@CASE/tokens.npy --expect output=@CASE/logits.npy --tolerance 1e-4
"""

import os
import sys

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, max_position_embeddings=64, initializer_range=0.3)
LLAMA = dict(SMALL, intermediate_size=48, num_attention_heads=4, rms_norm_eps=1e-5)
QWEN = dict(SMALL, intermediate_size=48, moe_intermediate_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[])
DEEPSEEK = dict(SMALL, num_hidden_layers=3, first_k_dense_replace=1, intermediate_size=32, moe_intermediate_size=8, num_attention_heads=4,
                num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
                n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, n_group=4, topk_group=2, routed_scaling_factor=2.5)

CASES = {
    "llama_mha": (LlamaForCausalLM, LlamaConfig, dict(LLAMA, num_key_value_heads=4)),
    "llama_gqa": (LlamaForCausalLM, LlamaConfig, dict(LLAMA, num_key_value_heads=2, rope_theta=500.0)),
    "llama_tied": (LlamaForCausalLM, LlamaConfig, dict(LLAMA, num_key_value_heads=1, tie_word_embeddings=True)),
    "qwen3_moe_normed": (Qwen3MoeForCausalLM, Qwen3MoeConfig, dict(QWEN, norm_topk_prob=True)),
    "qwen3_moe_plain": (Qwen3MoeForCausalLM, Qwen3MoeConfig, dict(QWEN, norm_topk_prob=False, num_experts=6, num_experts_per_tok=3)),
    "deepseek_v3_lora": (DeepseekV3ForCausalLM, DeepseekV3Config, DEEPSEEK),
    "deepseek_v3_no_lora": (DeepseekV3ForCausalLM, DeepseekV3Config, dict(DEEPSEEK, q_lora_rank=None, n_group=1, topk_group=1)),
    "deepseek_v3_two_shared": (DeepseekV3ForCausalLM, DeepseekV3Config, dict(DEEPSEEK, n_shared_experts=2, norm_topk_prob=False)),
}


def main(out):
    for case, (model_class, config_class, settings) in CASES.items():
        torch.manual_seed(sum(map(ord, case)))
        config = config_class(**settings, attn_implementation="eager")
        model = model_class(config).float().eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "norm" in name:
                    p.add_(torch.randn_like(p) * 0.2)
            for name, b in model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    b.copy_(torch.randn_like(b) * 0.2)
            for name, p in model.named_parameters():
                if "experts." in name or name.endswith("gate.weight"):
                    p.copy_(torch.randn_like(p) * 0.3)
            tokens = torch.randint(0, settings["vocab_size"], (2, 13))
            logits = model(tokens).logits
        folder = os.path.join(out, case)
        os.makedirs(folder, exist_ok=True)
        model.save_pretrained(folder)
        os.remove(os.path.join(folder, "generation_config.json"))
        np.save(os.path.join(folder, "tokens.npy"), tokens.numpy().astype(np.int32))
        np.save(os.path.join(folder, "logits.npy"), logits.numpy().astype(np.float32))
        print(case, len(load_file(os.path.join(folder, "model.safetensors"))), "tensors")


if __name__ == "__main__":
    main(sys.argv[1])

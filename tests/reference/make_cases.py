"""Makes reference cases with Hugging Face's models: random weights, tokens, logits in f32.

    python -m venv /tmp/venv && /tmp/venv/bin/pip install torch transformers safetensors numpy
    /tmp/venv/bin/python tests/reference/make_cases.py OUT_DIR

Each case is a folder: config.json, model.safetensors (with the names of the published checkpoints), tokens.npy (i32), logits.npy.
Compare with:

    lode run models/M/model.lode --config CASE/config.json --weights CASE/model.safetensors \
        -i tokens=@CASE/tokens.npy --expect output=@CASE/logits.npy --tolerance 1e-4
"""

import json
import os
import sys

import numpy as np
import torch
from safetensors.torch import save_file
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
DEEPSEEK = dict(SMALL, num_hidden_layers=3, first_k_dense_replace=1, intermediate_size=48, moe_intermediate_size=16, num_attention_heads=4,
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


def unfuse(name, tensor):
    """Experts that newer versions keep in one tensor, under the names of published checkpoints."""
    if name.endswith("experts.gate_up_proj"):
        base = name[: -len("gate_up_proj")]
        for e in range(tensor.shape[0]):
            gate, up = tensor[e].chunk(2, dim=0)
            yield f"{base}{e}.gate_proj.weight", gate
            yield f"{base}{e}.up_proj.weight", up
    elif name.endswith("experts.down_proj"):
        base = name[: -len("down_proj")]
        for e in range(tensor.shape[0]):
            yield f"{base}{e}.down_proj.weight", tensor[e]
    else:
        yield name, tensor


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
        state = {}
        for name, tensor in model.state_dict().items():
            if config.tie_word_embeddings and name == "lm_head.weight":
                continue
            for n, t in unfuse(name, tensor):
                state[n] = t.contiguous().clone()
        save_file(state, os.path.join(folder, "model.safetensors"))
        written = {k: v for k, v in config.to_dict().items() if isinstance(v, (int, float, bool, str)) or v is None}
        rope = config.to_dict().get("rope_parameters") or {}
        written.setdefault("rope_theta", settings.get("rope_theta", rope.get("rope_theta", 10000.0)))
        written.setdefault("head_dim", settings["hidden_size"] // settings["num_attention_heads"])
        json.dump(written, open(os.path.join(folder, "config.json"), "w"), indent=1, sort_keys=True)
        np.save(os.path.join(folder, "tokens.npy"), tokens.numpy().astype(np.int32))
        np.save(os.path.join(folder, "logits.npy"), logits.numpy().astype(np.float32))
        print(case, sorted(state)[:3], len(state))


if __name__ == "__main__":
    main(sys.argv[1])

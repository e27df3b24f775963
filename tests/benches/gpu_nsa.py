"""Dense causal attention by torch (cuDNN), at the sizes of `nsa_layer.lode` and `nsa_train.lode`: `python3 tests/benches/gpu_nsa.py HEADS GROUPS [T...]`."""

import sys

import torch
from gpu_products import best_ms
from torch.nn.attention import SDPBackend, sdpa_kernel

heads, groups, *lengths = [int(x) for x in sys.argv[1:]]
for t in lengths:
    q = torch.randn(1, heads, t, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(1, groups, t, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        forward = best_ms(attend, times=5, rounds=3)
        o = attend()
        d = torch.randn_like(o)
        backward = best_ms(lambda: torch.autograd.grad(o, (q, k, v), d, retain_graph=True), times=3, rounds=3)
    print(f"t={t}: forward {forward * 1e3:.0f} us, backward {backward * 1e3:.0f} us", flush=True)

"""Causal attention of bf16 by torch (cuDNN), for the shapes of `ptx … large_attends`: `python3 tests/benches/gpu_attends.py`."""

import torch
from gpu_products import best_ms
from torch.nn.attention import SDPBackend, sdpa_kernel

for b, t in [(1, 8192), (4, 2048), (1, 16384)]:
    for dk, dv in [(128, 128), (64, 64), (192, 128)]:
        q, k = (torch.randn(b, 16, t, dk, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        v = torch.randn(b, 16, t, dv, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for causal in (True, False):
            attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
            try:
                with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
                    forward = best_ms(attend)
                    o = attend()
                    d = torch.randn_like(o)
                    backward = best_ms(lambda: torch.autograd.grad(o, (q, k, v), d, retain_graph=True))
            except RuntimeError as e:
                print(b, t, dk, dv, causal, str(e)[:80])
                continue
            flops = 2 * b * 16 * t * t * (dk + dv) / (2 if causal else 1)
            rate = flops / forward / 1e9
            print(f"b={b} t={t} dk={dk} dv={dv} causal={causal}: forward {forward * 1e3:.1f} us {rate:.0f} TFLOP/s, backward {backward * 1e3:.1f} us", flush=True)

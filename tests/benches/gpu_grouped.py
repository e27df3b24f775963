"""Grouped products of bf16 by torch (`_grouped_mm`), for the shapes of `ptx … large_grouped`: `python3 tests/benches/gpu_grouped.py [ROWS]`."""

import sys

import torch
from gpu_products import best_ms

SHAPES = [(128, 2048, 1536), (128, 768, 2048), (32, 7168, 4096), (32, 2048, 7168)]


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 131072
    for groups, k, n in SHAPES:
        # Halfway from even to random, as gpu_check has them.
        cuts = torch.randint(0, rows, (groups - 1,)).sort().values
        even = torch.arange(1, groups) * rows // groups
        offsets = torch.cat([(cuts + even) // 2, torch.tensor([rows])]).int().cuda()
        x = torch.rand(rows, k, device="cuda", dtype=torch.bfloat16) * 2 - 1
        w = torch.rand(groups, n, k, device="cuda", dtype=torch.bfloat16) * 2 - 1
        dy = torch.rand(rows, n, device="cuda", dtype=torch.bfloat16) * 2 - 1
        ways = {
            "y = x·wᵀ": lambda: torch._grouped_mm(x, w.transpose(1, 2), offs=offsets),
            "dx = dy·w": lambda: torch._grouped_mm(dy, w, offs=offsets),
            "dw = xᵀ·dy": lambda: torch._grouped_mm(x.t(), dy, offs=offsets),
        }
        for name, run in ways.items():
            ms = best_ms(run)
            print(f"groups={groups} k={k} n={n} {name}: {ms * 1e3:.1f} us {2 * rows * n * k / ms / 1e9:.1f} TFLOP/s", flush=True)


if __name__ == "__main__":
    main()

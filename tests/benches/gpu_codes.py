"""Dense products of e4m3 codes by torch, for the shapes of `ptx … large_codes`: `python3 tests/benches/gpu_codes.py`. A scale for each row (and fast sums of
fourteen bits), or for each block of 128 terms of a row, the second operand's for each row or for 128 of them (cuBLAS, where it has them)."""

import torch

from gpu_products import best_ms

SHAPES = [(2112, 7168), (24576, 1536), (7168, 16384), (4096, 7168), (7168, 2048)]


def scales(rows, blocks):
    """f32 of each row and block, those of a block behind each other."""
    return (torch.rand(blocks, rows, device="cuda") + 0.5).t()


def main():
    m = 4096
    for n, k in SHAPES:
        x, w = ((torch.rand(r, k, device="cuda") * 2 - 1).to(torch.float8_e4m3fn) for r in (m, n))
        ways = {
            "rows": (torch.rand(m, 1, device="cuda"), torch.rand(1, n, device="cuda"), True),
            "1x128 by 1x128": (scales(m, k // 128), scales(n, k // 128).t(), False),
            "1x128 by 128x128": (scales(m, k // 128), torch.rand((n + 127) // 128, k // 128, device="cuda").t(), False),
        }
        for name, (a, b, fast) in ways.items():
            run = lambda: torch._scaled_mm(x, w.t(), a, b, out_dtype=torch.bfloat16, use_fast_accum=fast)
            try:
                ms = best_ms(run)
                print(f"m={m} n={n} k={k} {name}: {ms * 1e3:.1f} us {2 * m * n * k / ms / 1e9:.1f} TFLOP/s", flush=True)
            except RuntimeError as error:
                print(f"m={m} n={n} k={k} {name}: {str(error).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()

"""Dense products of bf16 by torch (cuBLAS), for the shapes of `ptx … large_products`: `python3 tests/benches/gpu_products.py`."""

import torch

SHAPES = [(2112, 7168), (24576, 1536), (7168, 16384), (4096, 7168), (7168, 2048), (8192, 8192)]


def best_ms(run, times=20, rounds=5):
    """The least mean of some rounds of launches. # Units: milliseconds."""
    [run() for _ in range(3)]
    best = float("inf")
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        [run() for _ in range(times)]
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / times)
    return best


def main():
    for m in (4096, 8192):
        for n, k in SHAPES:
            x, w = (torch.rand(r, k, device="cuda", dtype=torch.bfloat16) * 2 - 1 for r in (m, n))
            ms = best_ms(lambda: x @ w.t())
            print(f"m={m} n={n} k={k}: {ms * 1e3:.1f} us {2 * m * n * k / ms / 1e9:.1f} TFLOP/s", flush=True)


if __name__ == "__main__":
    main()

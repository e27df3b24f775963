"""Lode against PyTorch's eager mode on a dense decoder, both on the same cores in the same run: 6 layers, width 512, feed-forward
2048, 8 heads, vocabulary 8192, f32; forward on 1 x 128 tokens and a training step (loss, backward, clipping, AdamW) on 8 x 256.

    python tests/benches/dense.py [--lode target/release/lode] [--threads 2] [--seconds 10]

Needs torch. Prints tokens/s of each (medians) and the ratios Lode / torch.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import tempfile
import time

import torch
import torch.nn.functional as F
from torch import nn

LAYERS, WIDTH, FF, HEADS, VOCAB = 6, 512, 2048, 8, 8192


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-5), nn.RMSNorm(WIDTH, eps=1e-5)
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((WIDTH, FF), (WIDTH, FF), (FF, WIDTH)))

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, WIDTH))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
        self.layers, self.norm = nn.ModuleList(Layer() for _ in range(LAYERS)), nn.RMSNorm(WIDTH, eps=1e-5)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens):
        half = WIDTH // HEADS // 2
        angle = torch.outer(torch.arange(tokens.shape[1]), 10000.0 ** (-torch.arange(half) / half))
        cos, sin = angle.cos(), angle.sin()
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x))


HERE = pathlib.Path(__file__).resolve().parent
MODEL = [HERE.parents[1] / "models/llama/model.lode", "--config", HERE / "dense.json"]


def measure(name, tokens, seconds, call):
    for _ in range(2):
        call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    speed = tokens / statistics.median(times)
    print(f"torch {name}: {speed:.0f} tokens/s, {len(times)} runs", flush=True)
    return speed


def lode_forward(lode, args):
    command = [lode, "bench", *MODEL, "--dims", "B=1,T=128", "--seconds", args.seconds, "--threads", args.threads]
    text = subprocess.run(map(str, command), check=True, capture_output=True, text=True).stdout
    speed = float(re.search(r"(\d+) tokens/s", text)[1])
    print(f"lode  forward 1x128: {speed:.0f} tokens/s", flush=True)
    return speed


def lode_training(lode, args):
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "text"
        data.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 20000)
        command = [lode, "train", *MODEL, "--data", data, "--batch", 8, "--seq", 256, "--steps", 6, "--threads", args.threads]
        command += ["--out", folder, "--sample", 0, "--eval-every", 1000]
        subprocess.run(map(str, command), check=True, capture_output=True)
        lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    # The figure is the mean from the first step on; the sixth step also validates.
    speed = json.loads(lines[-2])["tokens_per_s"]
    print(f"lode  training 8x256: {speed:.0f} tokens/s", flush=True)
    return speed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lode", default=HERE.parents[1] / "target/release/lode")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Decoder()
    count = sum(p.numel() for p in model.parameters())
    print(f"torch {torch.__version__}, {args.threads} threads, {count / 1e6:.1f} M parameters, f32")

    prompt = torch.randint(0, VOCAB, (1, 128))

    def forward():
        with torch.no_grad():
            return model(prompt)

    torch_forward = measure("forward 1x128", prompt.numel(), args.seconds, forward)
    forward_ratio = lode_forward(args.lode, args) / torch_forward

    batch = torch.randint(0, VOCAB, (8, 257))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def step():
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.view(-1, VOCAB), batch[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    torch_training = measure("training 8x256", 8 * 256, args.seconds, step)
    training_ratio = lode_training(args.lode, args) / torch_training
    print(f"lode / torch: forward {forward_ratio:.2f}, training {training_ratio:.2f}")


if __name__ == "__main__":
    main()

"""PyTorch's eager speed on a dense decoder: 6 layers, width 512, feed-forward 2048, 8 heads, vocabulary 8192, f32.

    python tests/benches/torch_dense.py [--threads 2] [--seconds 10]

Prints tokens/s of a forward pass of 1 x 128 tokens and of a training step (loss, backward, clipping, AdamW) of 8 x 256: median, best
and number of runs. Training the same shape in Lode, whose metrics.jsonl has tokens_per_s of each step:

    lode train models/llama/model.lode --config tests/benches/dense.json --data TEXT --batch 8 --seq 256 --steps 20
"""

import argparse
import statistics
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


def measure(name, tokens, seconds, call):
    for _ in range(2):
        call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    print(f"{name}: {tokens / statistics.median(times):.0f} tokens/s median, {tokens / min(times):.0f} best, {len(times)} runs", flush=True)


def main():
    parser = argparse.ArgumentParser()
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

    measure("forward 1x128", prompt.numel(), args.seconds, forward)

    batch = torch.randint(0, VOCAB, (8, 257))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def step():
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.view(-1, VOCAB), batch[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    measure("training 8x256", 8 * 256, args.seconds, step)


if __name__ == "__main__":
    main()

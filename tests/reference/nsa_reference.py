"""Native sparse attention in f64, token by token, written from the formulas of arXiv 2502.11089 and from nothing else of this project.

    python tests/reference/nsa_reference.py tests/reference/cases

Each case is a folder: config.json, the inputs as .npy (f32), output.npy (f64). Compare with:

    lode run tests/reference/nsa.lode --config CASE/config.json -i q=@CASE/q.npy -i kc=@CASE/kc.npy … --expect output=@CASE/output.npy
"""

import json
import math
import os
import sys

import numpy as np

# Two blocks of the same score may be taken either way by f32; such inputs are drawn again.
GAP = 1e-3

USUAL = dict(h=4, g=2, dk=3, dv=2, length=4, stride=2, size=8, count=4, window=5, first=1, local=2)
# Name: number of sequences, tokens, config, and whether the scores are all alike.
CASES = {
    "nsa_one_token": (2, 1, USUAL, False),
    "nsa_shorter_than_a_window": (1, 3, USUAL, False),
    "nsa_one_block": (1, 7, USUAL, False),
    "nsa_exactly_count_blocks": (1, 32, USUAL, False),
    "nsa_one_block_more": (1, 33, USUAL, False),
    "nsa_odd": (2, 43, dict(USUAL, h=3, g=1), False),
    "nsa_group_of_one": (1, 45, dict(USUAL, h=2, g=2, count=3), False),
    "nsa_group_of_eight": (1, 45, dict(USUAL, h=8, g=1, dk=4, dv=5, count=3), False),
    "nsa_no_overlap": (1, 50, dict(USUAL, length=4, stride=4, size=4, count=5), False),
    "nsa_window_is_block": (1, 41, dict(USUAL, length=8, stride=2, size=8, count=3), False),
    "nsa_long_windows": (1, 47, dict(USUAL, length=8, stride=4, size=4, count=5, window=3), False),
    "nsa_nothing_forced": (1, 47, dict(USUAL, count=2, first=0, local=1), False),
    "nsa_two_first": (1, 55, dict(USUAL, count=5, first=2, local=1), False),
    "nsa_ties": (1, 50, dict(USUAL, length=4, stride=4, size=4, count=5), True),
}


def softmax(scores):
    e = [math.exp(s - max(scores)) for s in scores]
    return [x / sum(e) for x in e]


def choose(score, own, count, first, local):
    """The blocks of a query that stands in block `own`: forced ones, then the best of the others; and how clear the choice was."""
    candidates = range(own + 1)
    forced = [j for j in candidates if j < first or own - local < j]
    free = sorted((j for j in candidates if j not in forced), key=lambda j: (-score[j], j))
    left = max(0, count - len(forced))
    gap = score[free[left - 1]] - score[free[left]] if 0 < left < len(free) else math.inf
    return sorted(forced + free[:left]), gap


def attention(q, kc, vc, ks, vs, kw, vw, gate, h, g, dk, dv, length, stride, size, count, window, first, local):
    """One sequence. Returns the output [t, h, dv] and the smallest gap between a chosen and a rejected block's score."""
    t_len = q.shape[0]
    blocks = -(-t_len // size)
    m = (t_len - length) // stride + 1 if t_len >= length else 0
    mean = lambda x, i, head: np.mean([x[i * stride + o, head] for o in range(length)], axis=0)
    out, clearest = np.zeros((t_len, h, dv)), math.inf
    scale = 1.0 / math.sqrt(dk)
    for t in range(t_len):
        seen = [i for i in range(m) if i * stride + length - 1 <= t]
        for group in range(g):
            keys = [mean(kc, i, group) for i in seen]
            values = [mean(vc, i, group) for i in seen]
            heads = range(group * (h // g), (group + 1) * (h // g))
            score = [0.0] * blocks
            compressed = {}
            for head in heads:
                p = softmax([scale * float(q[t, head] @ k) for k in keys]) if seen else []
                compressed[head] = sum((p[n] * values[n] for n in range(len(seen))), np.zeros(dv))
                for n, i in enumerate(seen):
                    for token in range(i * stride, i * stride + length):
                        score[token // size] += p[n] / stride
            chosen, gap = choose(score, t // size, count, first, local)
            clearest = min(clearest, gap)
            picked = [s for j in chosen for s in range(j * size, j * size + size) if s <= t]
            near = [s for s in range(t_len) if t - window < s <= t]
            for head in heads:
                o = gate[t, head, 0] * compressed[head]
                for branch, k, v, tokens in ((1, ks, vs, picked), (2, kw, vw, near)):
                    p = softmax([scale * float(q[t, head] @ k[s, group]) for s in tokens])
                    o = o + gate[t, head, branch] * sum(p[n] * v[s, group] for n, s in enumerate(tokens))
                out[t, head] = o
    return out, clearest


def inputs(seed, b, t, c, ties):
    r = np.random.default_rng(seed)
    draw = lambda *shape: r.standard_normal((b, t) + shape).astype(np.float32)
    x = dict(q=3 * draw(c["h"], c["dk"]), gate=np.abs(draw(c["h"], 3)))
    for branch in "csw":
        x["k" + branch], x["v" + branch] = draw(c["g"], c["dk"]), draw(c["g"], c["dv"])
    if ties:
        x["kc"][:] = 0
    return x


def main(out):
    for name, (b, t, c, ties) in CASES.items():
        for seed in range(10_000):
            x = inputs(seed, b, t, c, ties)
            rows = [attention(**{n: v[i].astype(np.float64) for n, v in x.items()}, **c) for i in range(b)]
            if ties or min(gap for _, gap in rows) > GAP:
                break
        else:
            raise SystemExit(f"{name}: no clear choice")
        folder = os.path.join(out, name)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(c, f)
        for n, v in x.items():
            np.save(os.path.join(folder, n + ".npy"), v)
        np.save(os.path.join(folder, "output.npy"), np.stack([o for o, _ in rows]))
        print(name, "seed", seed)


if __name__ == "__main__":
    main(sys.argv[1])

"""A mixture of experts with DeepSeek-V3's gate in f64, token by token, written from arXiv 2412.19437 and from nothing else here.

    python tests/reference/moe_reference.py tests/reference/cases

Each case is a folder: config.json, model.safetensors, x.npy (f32), output.npy (f64). Compare with:

    lode run tests/reference/moe.lode --config CASE/config.json --weights CASE/model.safetensors -i x=@CASE/x.npy --expect output=@CASE/output.npy
"""

import json
import math
import os
import struct
import sys

import numpy as np

GAP = 1e-3
USUAL = dict(d=6, n=8, top=2, f=4, shared=0, groups=1, keep=1, normalise=True, scale=1.0)
# Name: shape of the tokens, config, standard deviation of the bias.
CASES = {
    "moe_plain": ((2, 9), USUAL, 0.0),
    "moe_bias_only_selects": ((1, 21), dict(USUAL, scale=2.5), 1.0),
    "moe_groups": ((2, 13), dict(USUAL, groups=4, keep=2, scale=2.5), 0.3),
    "moe_one_group_kept": ((1, 11), dict(USUAL, n=12, top=3, groups=3, keep=1), 0.3),
    "moe_shared": ((1, 8), dict(USUAL, shared=2, normalise=False), 0.3),
    "moe_top_one": ((1, 10), dict(USUAL, top=1), 0.3),
    "moe_all": ((1, 5), dict(USUAL, n=4, top=4), 0.3),
    "moe_one_token": ((1, 1), dict(USUAL, groups=2, keep=1), 0.3),
}


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def feed_forward(x, gate, up, down):
    hidden = [float(g @ x) * sigmoid(float(g @ x)) * float(u @ x) for g, u in zip(gate, up)]
    return down @ np.array(hidden)


def route(x, w, c):
    """The token's experts and their weights; and how clear the choice was."""
    scores = [sigmoid(float(row @ x)) for row in w["gate.weight"]]
    biased = [s + float(b) for s, b in zip(scores, w["gate.e_score_correction_bias"])]
    size, gap = c["n"] // c["groups"], math.inf
    allowed = list(range(c["n"]))
    if c["keep"] < c["groups"]:
        two_best = [sum(sorted(biased[g * size:(g + 1) * size])[-2:]) for g in range(c["groups"])]
        order = sorted(range(c["groups"]), key=lambda g: -two_best[g])
        gap = two_best[order[c["keep"] - 1]] - two_best[order[c["keep"]]]
        allowed = [e for g in order[:c["keep"]] for e in range(g * size, (g + 1) * size)]
    order = sorted(allowed, key=lambda e: -biased[e])
    if len(order) > c["top"]:
        gap = min(gap, biased[order[c["top"] - 1]] - biased[order[c["top"]]])
    chosen = order[:c["top"]]
    total = sum(scores[e] for e in chosen) + 1e-20 if c["normalise"] else 1.0
    return [(e, c["scale"] * scores[e] / total) for e in chosen], gap


def mixture(x, w, c):
    out, clearest = np.zeros_like(x), math.inf
    for i, token in enumerate(x):
        chosen, gap = route(token, w, c)
        clearest = min(clearest, gap)
        for e, weight in chosen:
            out[i] += weight * feed_forward(token, *(w[f"experts.{e}.{p}_proj.weight"] for p in ("gate", "up", "down")))
        if c["shared"]:
            out[i] += feed_forward(token, *(w[f"shared_experts.{p}_proj.weight"] for p in ("gate", "up", "down")))
    return out, clearest


def draw(seed, shape, c, bias):
    r = np.random.default_rng(seed)
    normal = lambda *s: (r.standard_normal(s) * 0.5).astype(np.float32)
    w = {"gate.weight": normal(c["n"], c["d"])}
    w["gate.e_score_correction_bias"] = (r.standard_normal(c["n"]) * bias).astype(np.float32)
    sizes = {f"experts.{e}": c["f"] for e in range(c["n"])}
    if c["shared"]:
        sizes["shared_experts"] = c["f"] * c["shared"]
    for name, f in sizes.items():
        w[f"{name}.gate_proj.weight"], w[f"{name}.up_proj.weight"] = normal(f, c["d"]), normal(f, c["d"])
        w[f"{name}.down_proj.weight"] = normal(c["d"], f)
    return r.standard_normal(shape + (c["d"],)).astype(np.float32), w


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, t in tensors.items():
        header[name] = dict(dtype="F32", shape=list(t.shape), data_offsets=[at, at + t.nbytes])
        at += t.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(t.tobytes() for t in tensors.values()))


def main(out):
    for name, (shape, c, bias) in CASES.items():
        for seed in range(10_000):
            x, w = draw(seed, shape, c, bias)
            y, gap = mixture(x.reshape(-1, c["d"]).astype(np.float64), {n: t.astype(np.float64) for n, t in w.items()}, c)
            if gap > GAP:
                break
        else:
            raise SystemExit(f"{name}: no clear choice")
        folder = os.path.join(out, name)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(c, f)
        write_safetensors(os.path.join(folder, "model.safetensors"), w)
        np.save(os.path.join(folder, "x.npy"), x)
        np.save(os.path.join(folder, "output.npy"), y.reshape(x.shape))
        print(name, "seed", seed)


if __name__ == "__main__":
    main(sys.argv[1])

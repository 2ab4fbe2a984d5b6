"""A small GPT over bytes, and data for it: what the PyTorch examples train.

The text is the source of Python's standard library, or any file. Which batch a peer trains on
follows from the run's position and the peer's rank, so that at any moment all peers see
different data, newcomers included, and a run that is restarted goes on where it was.
"""

import math
import sysconfig
from pathlib import Path

import numpy as np
from torch.nn import functional

import torch
from torch import nn

BYTE_COUNT = 256
#: Every so many bytes of text one block is held out.
HOLD_OUT_EVERY = 20
BLOCK_BYTES = 4096


class Block(nn.Module):
    """Attention and a hidden layer, each added to what went in."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class SmallGPT(nn.Module):
    """Predicts each byte from the ones before it; the embedding is tied to the output."""

    def __init__(self, width=64, layers=4, heads=4, context=64, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.context = context
        self.embedding = nn.Embedding(BYTE_COUNT, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTE_COUNT, bias=False)
        self.head.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * layers) if deep else 1.0))

    def forward(self, given):
        places = torch.arange(given.shape[1], device=given.device)
        x = self.embedding(given) + self.places(places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def loss(self, text):
        """Mean cross entropy in nats; `text` has shape (batch, context + 1), of bytes."""
        logits = self(text[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


class Text:
    """Bytes to train on and bytes held out, as blocks of 4 KiB in turn."""

    def __init__(self, path=None, bytes_max=8 << 20):
        raw = Path(path).read_bytes() if path else standard_library(bytes_max)
        data = np.frombuffer(raw[:bytes_max], np.uint8)
        blocks = data[: len(data) // BLOCK_BYTES * BLOCK_BYTES].reshape(-1, BLOCK_BYTES)
        if len(blocks) < 2 * HOLD_OUT_EVERY:
            raise ValueError(f"a text of {len(data)} bytes is too short")
        held_out = np.arange(len(blocks)) % HOLD_OUT_EVERY == 0
        self.train = blocks[~held_out].ravel()
        self.held_out = blocks[held_out].ravel()

    def batch(self, position, rank, count, context, seed=0):
        """The batch of one inner step: another one for each position and rank."""
        rng = np.random.default_rng((seed, position, rank))
        starts = rng.integers(0, len(self.train) - context - 1, count)
        rows = self.train[starts[:, None] + np.arange(context + 1)]
        return torch.from_numpy(rows.astype(np.int64))

    def bits_per_byte(self, model, device="cpu", bytes_max=64 << 10):
        """Of held-out text; lower is better, 8 is to know nothing."""
        length = model.context + 1
        rows = self.held_out[: bytes_max // length * length].reshape(-1, length)
        losses = []
        model.eval()
        with torch.no_grad():
            for start in range(0, len(rows), 128):
                part = torch.from_numpy(rows[start : start + 128].astype(np.int64)).to(device)
                losses.append((float(model.loss(part)), len(part)))
        model.train()
        total = sum(loss * count for loss, count in losses)
        return total / sum(count for _, count in losses) / math.log(2)


def standard_library(bytes_max):
    """The source of Python's standard library, file after file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    collected = bytearray()
    for path in sorted(root.glob("*.py")) + sorted(root.glob("*/*.py")):
        if "site-packages" in path.parts:
            continue
        collected += path.read_bytes()
        if len(collected) >= bytes_max:
            break
    return bytes(collected)


def learning_rate(position, steps, peak, warm_up=40):
    """Up in a straight line, then down along a cosine to a tenth."""
    if position < warm_up:
        return peak * (position + 1) / warm_up
    share = min((position - warm_up) / max(steps - warm_up, 1), 1.0)
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2)

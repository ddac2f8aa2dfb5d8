"""A draft head in plain float32 torch: what the native one is compared with, and what training changes.

`outpace.models.draft_head` describes its tensors, and native/draft_head.h what it computes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from outpace.models.draft_head import FORMAT, VERSION
from outpace.types import ModelSpec

KeysValues = tuple[Tensor, Tensor]  # each [texts, kv_heads, tokens, head_dim]


@dataclass(frozen=True)
class Target:
    """What a head needs of its model: the spec, and float32 weights."""

    spec: ModelSpec
    embed: Tensor  # [vocab, hidden]
    output_norm: Tensor  # [hidden]
    output: Tensor  # [vocab, hidden]
    layers: list[dict[str, Tensor]]  # by the names of `LAYER`; biases and head norms are not among them
    rope_theta: float


class TorchHead:
    """`weights` by canonical name; `token_ids` [draft_vocab] ascending."""

    def __init__(
        self, target: Target, token_ids: np.ndarray, *, num_layers: int = 1, theta: float = 0.0, seed: int = 0
    ) -> None:
        """A head whose layers are shaped as the model's; `theta` 0 is the model's.

        It starts with the model's last layers, which add nothing yet, its norm and its output rows.
        """
        self.target, self.token_ids, self.num_layers = target, token_ids, num_layers
        self.theta = theta or target.rope_theta
        hidden = target.spec.hidden_size
        random = torch.Generator().manual_seed(seed)
        self.weights = {"fc": torch.randn(hidden, 2 * hidden, generator=random) / (2 * hidden) ** 0.5}
        for i, layer in enumerate(target.layers[-num_layers:]):
            for name, weight in layer.items():
                self.weights[f"layers.{i}.{name}"] = weight * (name not in ("o", "down"))
        self.weights["output_norm"] = target.output_norm.clone()
        self.weights["output"] = target.output[torch.from_numpy(token_ids).long()].clone()

    # --- what it computes -------------------------------------------------------------------------

    def states(self, token_ids: Tensor, before: Tensor, passes: list[list[KeysValues]]) -> Tensor:
        """The states [texts, tokens, hidden] that stand for the model's; appends to `passes`.

        `before`: the state at the token before each, the model's own in the first pass. Pass m computes, for
        every position at once, the entry of a guess at depth m: the m - 1 entries before it are those of the
        passes before, the others the first one's.
        """
        spec, eps = self.target.spec, self.target.spec.norm_eps
        embedded = self.target.embed[token_ids] * spec.embedding_scale
        x = torch.cat([embedded, before], -1) @ self.weights["fc"].T
        cos, sin = self._angles(token_ids.shape[1])
        own: list[KeysValues] = []
        for i in range(self.num_layers):
            layer = {name: self.weights[f"layers.{i}.{name}"] for name in LAYER}
            normed = rms_norm(x, layer["attn_norm"], eps)
            query = rotate(split(normed @ layer["q"].T, spec.head_dim), cos, sin)
            key = rotate(split(normed @ layer["k"].T, spec.head_dim), cos, sin)
            own.append((key, split(normed @ layer["v"].T, spec.head_dim)))
            attended = attend(query, [*(each[i] for each in passes), own[i]])
            x = x + attended.transpose(1, 2).flatten(2) @ layer["o"].T
            normed = rms_norm(x, layer["ffn_norm"], eps)
            inner = functional.silu(normed @ layer["gate"].T) * (normed @ layer["up"].T)
            x = x + inner @ layer["down"].T
        passes.append(own)
        return rms_norm(x, self.weights["output_norm"], eps)

    def logits(self, states: Tensor) -> Tensor:
        """Of the draft vocabulary, [..., draft_vocab]."""
        return states @ self.weights["output"].T

    @torch.no_grad()
    def chain(self, token_ids: list[int], hidden: Tensor, num_guesses: int) -> tuple[list[int], list[Tensor]]:
        """The likeliest guesses after a text, and each one's probabilities over the draft vocabulary.

        hidden: [at least len(token_ids) - 1, hidden] the model's own states. Everything is computed anew for
        every guess: nothing can be left over from one before.
        """
        tokens, before = list(token_ids), [torch.zeros_like(hidden[0]), *hidden[: len(token_ids) - 1]]
        chances: list[Tensor] = []
        for _ in range(num_guesses):
            state = self.states(torch.tensor([tokens]), torch.stack(before)[None], [])[0, -1]
            chances.append(self.logits(state).softmax(-1))
            tokens.append(int(self.token_ids[int(chances[-1].argmax())]))
            before.append(state)
        return tokens[len(token_ids) :], chances

    def _angles(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        dim = self.target.spec.head_dim
        frequencies = 1.0 / self.theta ** (torch.arange(0, dim, 2) / dim)
        angles = torch.arange(num_tokens)[:, None] * frequencies
        return angles.cos(), angles.sin()

    # --- on disk ----------------------------------------------------------------------------------

    def save(self, folder: Path) -> Path:
        """Write config.json and model.safetensors, in half precision where that is enough."""
        folder.mkdir(parents=True, exist_ok=True)
        spec = self.target.spec
        names = ("architecture", "hidden_size", "num_layers", "vocab_size")
        config = {
            "format": FORMAT,
            "version": VERSION,
            "target": {name: getattr(spec, name) for name in names},
            "num_layers": self.num_layers,
            **{name: getattr(spec, name) for name in ("num_heads", "num_kv_heads", "head_dim")},
            "intermediate_size": spec.intermediate_size,
            "rope_theta": self.theta,
            "norm_eps": spec.norm_eps,
            "draft_vocab_size": len(self.token_ids),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = {
            name: weight.detach().to(torch.float16 if weight.dim() == 2 else torch.float32).contiguous()
            for name, weight in self.weights.items()
        }
        tensors["draft_to_target"] = torch.from_numpy(self.token_ids.astype(np.int32))
        save_file(tensors, folder / "model.safetensors")
        return folder


LAYER = ("attn_norm", "q", "k", "v", "o", "ffn_norm", "gate", "up", "down")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def split(x: Tensor, head_dim: int) -> Tensor:
    """[texts, tokens, heads x head_dim] as [texts, heads, tokens, head_dim]."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def attend(query: Tensor, passes: list[KeysValues]) -> Tensor:
    """Causal attention of the last pass's queries; see `TorchHead.states` for whose keys they see."""
    groups = query.shape[1] // passes[0][0].shape[1]
    passes = [(key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)) for key, value in passes]
    key, value = passes[0]
    if len(passes) == 1:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    num_tokens, scale = query.shape[2], query.shape[3] ** -0.5
    scores = query @ key.transpose(-1, -2)
    for back, (key, _) in enumerate(reversed(passes[1:])):
        own = (query[:, :, back:] * key[:, :, : num_tokens - back]).sum(-1)
        scores = scores.diagonal_scatter(own, -back, -2, -1)
    hidden = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1)
    weights = (scores * scale).masked_fill(hidden, -torch.inf).softmax(-1)
    nearest = []
    for back, (_, others) in enumerate(reversed(passes[1:])):
        weight = weights.diagonal(-back, -2, -1)
        nearest.append(functional.pad(weight[..., None] * others[:, :, : num_tokens - back], (0, 0, back, 0)))
        weights = weights.diagonal_scatter(torch.zeros_like(weight), -back, -2, -1)
    return weights @ value + sum(nearest)

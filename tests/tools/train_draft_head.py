"""Train a draft head for a model by what the model itself writes, and save it where `--draft-head` finds it.

    python tests/tools/train_draft_head.py MODEL FOLDER

MODEL is a GGUF file or a safetensors directory. The model answers prompts that are made of the docstrings of
this Python's standard library (`--prompts`; none of the shipped workloads'), or reads `--text` files. Its own
hidden states come from transformers on the dequantized weights, in float32 unless `--bf16` is given. The
head starts from least squares (`--epochs 0` stops there, which takes seconds) and learns the model's next
tokens, as far as they are among the most frequent ones of that text, their distribution, and its states
(EAGLE, arXiv:2401.15077), `--passes` of its own guesses deep (arXiv:2408.15766). Ctrl-C ends the training and
keeps the best head so far. Needs the test dependencies.
"""

from __future__ import annotations

import argparse
import ast
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from outpace import LLM, SamplingParams
from outpace.models import names
from outpace.models.checkpoint import open_checkpoint
from torch_head import LAYER, Target, TorchHead

TOKENS = 256  # of a piece of text that the head sees at once; about what it sees when it runs
STATE_WEIGHT = 10.0  # of the mean distance between its states' elements and the model's (EAGLE's)
OWN_TOKEN = 0.5  # of what is learned: the model's likeliest token; the rest is its distribution
HELD_OUT = 0.04  # of the pieces, to judge by
LANGUAGES = ("Python",) * 6 + ("C++", "Go", "Java", "JavaScript", "Rust", "TypeScript", "bash", "C", "SQL")
KINDS = (
    "Write a {language} function `{name}`: {what}",
    "Write a {language} function `{name}` that does this: {what} Add a test.",
    "Show me {language} code for a class `{name}`. {what}",
    "Write a {language} program. {what} Name the main part `{name}` and handle errors.",
    "Explain how you would write `{name}` in {language}, then write it. {what}",
)


# --- text -------------------------------------------------------------------------------------------


def code_prompts(count: int, seed: int) -> list[str]:
    """Requests for code, from the docstrings of the standard library."""
    library = Path(argparse.__file__).parent
    found: dict[str, str] = {}
    for path in sorted(library.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                doc = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if 30 < len(doc) < 300:
                    found.setdefault(node.name, doc)
    chosen = random.Random(seed)
    names = chosen.sample(sorted(found), min(count, len(found)))
    return [
        chosen.choice(KINDS).format(language=chosen.choice(LANGUAGES), name=name, what=found[name])
        for name in names
    ]


def answered(model: str, prompts: Sequence[str], max_tokens: int, seed: int) -> list[list[int]]:
    """The token ids of each prompt and its answer; every other answer is sampled, the others greedy."""
    texts: list[list[int]] = []
    with LLM(model, max_context=2048, draft_persist=False, kv_cache_bytes=256 << 20) as llm:
        for first in range(0, len(prompts), 32):
            some = [[{"role": "user", "content": prompt}] for prompt in prompts[first : first + 32]]
            params = [
                SamplingParams(temperature=0.7 * (i % 2), seed=seed + i, max_tokens=max_tokens)
                for i in range(len(some))
            ]
            for output in llm.chat(some, params):
                texts.append([*output.prompt_token_ids, *output.outputs[0].token_ids])
            report(f"{len(texts)} of {len(prompts)} prompts answered, {sum(map(len, texts))} tokens")
    return texts


def read(model: str, paths: Sequence[Path], num_tokens: int) -> list[list[int]]:
    """The token ids of text files, in pieces of `num_tokens`."""
    texts: list[list[int]] = []
    with LLM(model, max_context=2048, draft="off", kv_cache_bytes=64 << 20) as llm:
        for path in paths:
            ids = llm.tokenizer.encode(path.read_text(encoding="utf-8"))
            texts += [ids[start : start + num_tokens] for start in range(0, len(ids), num_tokens)]
    return texts


# --- what the model makes of it ---------------------------------------------------------------------


@dataclass
class Texts:
    """Token ids, and the model's final hidden states, after the output norm, at each: [tokens, hidden]."""

    token_ids: list[list[int]]
    states: list[Tensor]  # float16


def load(path: Path) -> tuple[Target, torch.nn.Module]:
    """The model in transformers, float32, and what a head needs of it."""
    from transformers import AutoModelForCausalLM

    where = {"gguf_file": path.name} if path.is_file() else {}
    model = AutoModelForCausalLM.from_pretrained(
        path.parent if path.is_file() else path, dtype=torch.float32, **where
    ).eval()
    return target_of(model, path), model


def target_of(model: torch.nn.Module, path: Path) -> Target:
    """`path` is that of the checkpoint whose weights `model` has."""
    weights = {names.from_huggingface(name): weight.detach() for name, weight in model.named_parameters()}
    spec = open_checkpoint(path).spec
    return Target(
        spec,
        weights["embed"],
        weights["output_norm"],
        weights.get("output", weights["embed"]),
        [{name: weights[f"layers.{i}.{name}"] for name in LAYER} for i in range(spec.num_layers)],
        model.config.rope_parameters["rope_theta"],
    )


@torch.no_grad()
def run_model(model: torch.nn.Module, token_ids: list[list[int]], *, bf16: bool = False) -> Texts:
    """Its states of every text. Texts of about the same length run together."""
    order = sorted(range(len(token_ids)), key=lambda i: len(token_ids[i]))
    states: list[Tensor] = [torch.empty(0)] * len(token_ids)
    done = 0
    for first in range(0, len(order), 8):
        some = order[first : first + 8]
        longest = max(len(token_ids[i]) for i in some)
        ids = torch.zeros(len(some), longest, dtype=torch.long)  # what is beyond a text's end is not seen
        for row, i in enumerate(some):
            ids[row, : len(token_ids[i])] = torch.tensor(token_ids[i])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden = model.model(ids, use_cache=False).last_hidden_state
        for row, i in enumerate(some):
            states[i] = hidden[row, : len(token_ids[i])].half()
            done += len(token_ids[i])
        report(f"{done} tokens read by the model")
    return Texts(token_ids, states)


def frequent_tokens(token_ids: list[list[int]], count: int, vocab_size: int) -> np.ndarray:
    """The most frequent token ids, ascending; ids that do not occur fill up from the lowest on."""
    counts = np.bincount(np.concatenate([np.array(ids) for ids in token_ids]), minlength=vocab_size)
    return np.sort(np.argsort(-counts, kind="stable")[:count]).astype(np.int32)


# --- training ---------------------------------------------------------------------------------------


@dataclass
class Piece:
    """`TOKENS` tokens at most of one text."""

    token_ids: Tensor  # [tokens]
    before: Tensor  # [tokens, hidden] the state at the token before each
    states: Tensor  # [tokens, hidden]


def cut(texts: Texts) -> list[Piece]:
    """Texts as pieces of one length; what is left at a text's end is dropped unless it is its only one."""
    pieces: list[Piece] = []
    for ids, states in zip(texts.token_ids, texts.states, strict=True):
        before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
        for first in range(0, max(1, len(ids) - TOKENS // 4), TOKENS):
            end = min(len(ids), first + TOKENS)
            kept = slice(max(0, end - TOKENS), end)
            pieces.append(Piece(torch.tensor(ids[kept]), before[kept], states[kept]))
    return pieces


@dataclass(frozen=True)
class Judgement:
    """How a head does: its loss, and for each depth the share of guesses that are the model's own."""

    loss: Tensor
    hits: list[float]


def judge(head: TorchHead, pieces: Sequence[Piece], passes: int) -> Judgement:
    """Runs the head over pieces, each pass on the states of the one before."""
    longest = max(len(piece.token_ids) for piece in pieces)
    pad = [longest - len(piece.token_ids) for piece in pieces]
    ids = torch.stack([functional.pad(p.token_ids, (0, n)) for p, n in zip(pieces, pad, strict=True)])
    real = torch.stack([torch.arange(longest) < len(p.token_ids) for p in pieces])
    before, states = (
        torch.stack([functional.pad(each.float(), (0, 0, 0, n)) for each, n in zip(many, pad, strict=True)])
        for many in ([p.before for p in pieces], [p.states for p in pieces])
    )
    with torch.no_grad():
        wanted = (states @ head.target.output[torch.from_numpy(head.token_ids).long()].T).log_softmax(-1)
        right = wanted.argmax(-1)
    size = head.target.output_norm.square().mean().sqrt()
    made: list = []
    hits: list[float] = []
    total = torch.zeros(())
    for depth in range(passes):
        own = head.states(ids, before, made)
        guess = head.logits(own).float().log_softmax(-1)
        distance = (1 - OWN_TOKEN) * (wanted.exp() * (wanted - guess)).sum(-1)
        distance = distance - OWN_TOKEN * guess.gather(-1, right[..., None])[..., 0]
        near = functional.smooth_l1_loss(own.float() / size, states / size, reduction="none").mean(-1)
        # The first positions of a pass have no guesses before them.
        counted = real & (torch.arange(longest) >= depth)
        total = total + 0.8**depth * (distance + STATE_WEIGHT * near)[counted].mean()
        hits.append(float((guess.argmax(-1) == right)[counted].float().mean()))
        before = functional.pad(own.float()[:, :-1], (0, 0, 1, 0))
    return Judgement(total, hits)


def fit(head: TorchHead, pieces: Sequence[Piece]) -> None:
    """Set `fc` to what predicts the next state best by itself, in the least squares' sense: a good start."""
    width = head.weights["fc"].shape[1]
    inputs, both = torch.zeros(width, width), torch.zeros(width, width // 2)
    for piece in pieces:
        embedded = head.target.embed[piece.token_ids] * head.target.spec.embedding_scale
        x = torch.cat([embedded, piece.before.float()], -1)
        inputs += x.T @ x
        both += x.T @ (piece.states.float() / head.target.output_norm)
    # A little of each input's own size keeps what occurs too rarely from being believed.
    ridge = torch.diag(inputs.diagonal() * 0.02 + 1e-4 * inputs.diagonal().mean())
    head.weights["fc"] = torch.linalg.solve(inputs + ridge, both).T.contiguous()


def train(
    head: TorchHead,
    pieces: list[Piece],
    *,
    epochs: float,
    passes: int = 2,
    rate: float = 5e-5,
    batch: int = 8,
    seed: int = 0,
    minutes: float = 1e9,
    bf16: bool = False,
) -> list[float]:
    """Fit and train in place; Ctrl-C and the time limit keep the best. Returns the held-out hits by depth."""
    chosen = random.Random(seed)
    chosen.shuffle(pieces)
    held_out = pieces[: max(1, int(len(pieces) * HELD_OUT))]
    pieces = pieces[len(held_out) :] or held_out
    fit(head, pieces)
    for weight in head.weights.values():
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(head.weights.values(), rate, betas=(0.9, 0.95), weight_decay=0.01)
    num_steps = int(epochs * len(pieces) / batch)
    started = time.perf_counter()

    def progress(step: int) -> float:
        spent = (time.perf_counter() - started) / (60 * minutes)
        return max(spent, step / num_steps) if num_steps else 1.0

    best: tuple[float, dict[str, Tensor], list[float]] = (float("inf"), {}, [])
    batches = _batches(pieces, batch, chosen)
    with suppress(KeyboardInterrupt):
        step, shown = 0, 0.0
        while True:
            done = min(1.0, progress(step))
            # A short start, then straight down.
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 20, 1.02 - done)
            if done >= 1.0 or progress(step) >= shown:
                shown = done + 0.1
                with torch.no_grad():
                    now = judge(head, held_out, max(3, passes))
                loss = float(now.loss)
                report(
                    f"{step} steps, {done:.0%}: held-out loss {loss:.3f}, hits by depth {_shown(now.hits)}"
                )
                if loss < best[0]:
                    best = (loss, {name: w.detach().clone() for name, w in head.weights.items()}, now.hits)
                if done >= 1.0:
                    break
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = judge(head, next(batches), passes).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.weights.values(), 1.0)
            optimizer.step()
            step += 1
    head.weights = best[1] or {name: weight.detach() for name, weight in head.weights.items()}
    return best[2]


def _batches(pieces: list[Piece], size: int, chosen: random.Random) -> Iterator[list[Piece]]:
    while True:
        order = chosen.sample(pieces, len(pieces))
        for first in range(0, len(order), size):
            yield order[first : first + size]


def _shown(shares: Sequence[float]) -> str:
    return " ".join(f"{share:.2f}" for share in shares)


def report(text: str) -> None:
    """A line of progress, with the time since the start."""
    print(f"{time.perf_counter() - STARTED:6.0f} s  {text}", file=sys.stderr, flush=True)


STARTED = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, nargs="*", help="files to read instead of answering prompts")
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--max-tokens", type=int, default=224, help="of an answer, and of a piece of a file")
    parser.add_argument("--draft-vocab", type=int, default=3072)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--minutes", type=float, default=10, help="of training at most")
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--batch", type=int, default=4, help="pieces in one step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    parser.add_argument("--states", type=Path, help="a file to keep text and states in for another run")
    args = parser.parse_args()
    target, model = load(args.model)
    if args.states and args.states.exists():
        texts = Texts(**torch.load(args.states))
    else:
        if args.text:
            token_ids = read(str(args.model), args.text, args.max_tokens)
        else:
            prompts = code_prompts(args.prompts, args.seed)
            token_ids = answered(str(args.model), prompts, args.max_tokens, args.seed)
        texts = run_model(model, token_ids, bf16=args.bf16)
        if args.states:
            torch.save(vars(texts), args.states)
    del model
    vocabulary = frequent_tokens(texts.token_ids, args.draft_vocab, target.spec.vocab_size)
    head = TorchHead(target, vocabulary, num_layers=args.layers, seed=args.seed)
    options = {
        name: getattr(args, name) for name in ("epochs", "passes", "rate", "batch", "seed", "minutes", "bf16")
    }
    pieces = cut(texts)
    hits = train(head, pieces, **options)
    head.save(args.folder)
    report(f"{args.folder}: held-out hits by depth {_shown(hits)}")


if __name__ == "__main__":
    main()

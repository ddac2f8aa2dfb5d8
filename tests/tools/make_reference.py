"""Make tests/golden/data/NAME.npz: what transformers says in float32 of a real model.

    python tests/tools/make_reference.py MODEL.gguf NAME

Nothing of Outpace runs here. The weights and the hyperparameters come through transformers' own
import of GGUF, dequantized to float32; the token ids through llama.cpp (transformers' import of a GGUF
tokenizer is wrong for SmolLM2). The texts are slices of the standard library of the Python that
runs this (PSF licence): modules for code, the language reference in pydoc_data for prose. The ids
are stored, so the test does not depend on the version of Python. About 8,450 tokens: half a minute
for 135M parameters on two cores, some minutes and 14 GB of memory for 1.5B.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden.reference import DATA, TOP, Document, Reference, save

LONG, SHORT = 3072, 1152  # tokens of a document; the long ones reach well beyond position 2,000
STRIDE = 8  # of the positions whose distribution is kept
HEAD_ROWS = 128  # rows of logits in memory at once


def texts() -> list[tuple[str, str, int, str]]:
    """(name, kind, number of tokens, text) of each document."""
    library = Path(argparse.__file__).parent

    def module(name: str) -> str:
        return (library / name).read_text(encoding="utf-8")

    from pydoc_data.topics import topics

    def reference(*names: str) -> str:
        return "\n\n".join(topics[name] for name in names)

    mixed = module("heapq.py")[9_000:13_000] + module("statistics.py")[20_000:]
    return [
        ("argparse.py", "code", LONG, module("argparse.py")[24_000:]),
        ("heapq.py, statistics.py", "code", SHORT, mixed),
        ("topics: types", "prose", LONG, reference("types")),
        ("topics: execmodel", "prose", SHORT, reference("execmodel")),
    ]


def tokenize(model: Path, text: str, length: int) -> list[int]:
    """The first `length` ids that llama.cpp gives, with the model's own beginning of text."""
    vocabulary = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    ids = vocabulary.tokenize(text.encode(), add_bos=True, special=False)
    if len(ids) < length:
        raise SystemExit(f"the text has {len(ids)} tokens, fewer than {length}")
    return ids[:length]


@torch.inference_mode()
def measure(model: transformers.PreTrainedModel, name: str, kind: str, ids: list[int]) -> Document:
    """Run one document and keep what a Document keeps."""
    tokens = torch.tensor([ids])
    hidden = model.model(tokens).last_hidden_state[0]  # [n, hidden]
    nll, best, top_ids, top_logprobs = [], [], [], []
    for start in range(0, len(ids), HEAD_ROWS):
        logprobs = torch.log_softmax(model.lm_head(hidden[start : start + HEAD_ROWS]).double(), -1)
        best.append(logprobs.argmax(-1))
        following = tokens[0, start + 1 : start + 1 + HEAD_ROWS]
        nll.append(-logprobs[: len(following)].gather(1, following[:, None])[:, 0])
        values, indices = logprobs[::STRIDE].topk(TOP)  # HEAD_ROWS is a multiple of STRIDE
        top_ids.append(indices)
        top_logprobs.append(values)
    return Document(
        name=name,
        kind=kind,
        token_ids=np.asarray(ids, np.int32),
        nll=torch.cat(nll).numpy().astype(np.float32),
        best=torch.cat(best).numpy().astype(np.int32),
        positions=np.arange(0, len(ids), STRIDE, dtype=np.int32),
        top_token_ids=torch.cat(top_ids).numpy().astype(np.int32),
        top_logprobs=torch.cat(top_logprobs).numpy().astype(np.float32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("name")
    arguments = parser.parse_args()
    path: Path = arguments.model.resolve()

    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    documents: list[Document] = []
    for name, kind, length, text in texts():
        began = time.monotonic()
        documents.append(measure(model, name, kind, tokenize(path, text, length)))
        perplexity, seconds = np.exp(documents[-1].nll.mean()), time.monotonic() - began
        print(f"{name}: {length} tokens, perplexity {perplexity:.3f}, {seconds:.0f} s", flush=True)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    made_with = {
        "file": path.name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "llama-cpp-python": llama_cpp.__version__,
        "texts": f"the standard library of Python {platform.python_version()} (PSF licence)",
    }
    DATA.mkdir(exist_ok=True)
    target = DATA / f"{arguments.name}.npz"
    save(Reference(digest, made_with, documents), target)
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

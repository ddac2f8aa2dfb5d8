"""Drafts that branch: each row of a tree is as in a chain of its path, bit for bit, on every backend."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from backends_under_test import BACKENDS

from outpace import backends
from outpace.config import resolve_engine_config
from outpace.engine.sampling import pack
from outpace.errors import BackendError
from outpace.models.checkpoint import open_checkpoint
from outpace.types import Backend, KVFormat, SamplingParams, StepOutput
from stepping import Rows, blocks_for, make_batch, run_logits
from tiny_checkpoint import TinyFactory

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TREES: dict[str, list[int]] = {
    "star": [-1] * 12,
    "two chains": [-1, 0, 1, 2, 3, -1, 5, 6, 7, 8],
    "comb": [-1, -1, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9],
    "breadth first": [-1, -1, 0, 0, 1, 1, 2, 2, 3, 4, 5, 5],
    "late fork": [-1, 0, 1, 2, 3, 4, 4, 5, 6],
    # A stem over more than a block that is out of line from its first row on, and forks on both sides of it.
    "long": [-1, -1, *range(1, 45), 20, 46, 47, 30, 49, 45, 51, 10],
}
"""Parents of drafts, by name."""

# Positions of the row before the drafts: around the borders of tiles, blocks and attention chunks.
ROOTS = [0, 14, 15, 16, 17, 30, 31, 32, 33, 126, 127, 128, 129]


def loaded(tiny_checkpoint: TinyFactory, variant: str, kv_format: KVFormat, **options: object) -> Backend:
    checkpoint = open_checkpoint(tiny_checkpoint(variant).path)
    config = resolve_engine_config(checkpoint.spec, {"kv_cache_bytes": 16 << 20, "num_threads": 2})
    return backends.create(checkpoint, replace(config, kv_format=kv_format, **options))


@pytest.fixture(
    scope="module",
    params=[
        "null",
        "torch",
        "llama int8",
        "llama f16",
        "mistral-window int8",
        "qwen2 int8",
        "llama-ragged f16",
    ],
)
def backend(request: pytest.FixtureRequest, tiny_checkpoint: TinyFactory) -> Iterator[Backend]:
    if request.param in BACKENDS:
        made = BACKENDS[request.param](tiny_checkpoint("llama").path)
    else:
        variant, kv_format = request.param.split()
        made = loaded(tiny_checkpoint, variant, kv_format)
    yield made
    made.close()


def path_of(parents: list[int], draft: int) -> list[int]:
    path = [draft]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]


def tokens_of(backend: Backend, count: int, seed: object = 0) -> list[int]:
    random = np.random.default_rng(zlib.crc32(repr(seed).encode()))
    return random.integers(0, backend.spec.vocab_size, count).tolist()


def chosen(out: StepOutput, request: int = 0) -> list[int]:
    return out.token_ids[request, : out.num_accepted[request] + 1].tolist()


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("num_new", [1, 3])
def test_every_row_is_as_in_a_chain_of_its_path(backend: Backend, tree: str, num_new: int) -> None:
    """With one row before the drafts, and with several as at a prompt's end; beside requests with chains."""
    parents = TREES[tree]
    for root in ROOTS if num_new == 1 else ROOTS[2:9]:
        context, drafts = tokens_of(backend, root + 1, root), tokens_of(backend, len(parents), tree)
        table = np.random.default_rng(root).permutation(12)[: blocks_for(root + 1 + len(parents))].tolist()
        start = root + 1 - num_new
        if start:
            run_logits(backend, context[:start], block_table=table)
        neighbour = Rows(tokens_of(backend, 4), 0, [13], num_draft_tokens=2)
        rows = Rows([*context[start:], *drafts], start, table, len(drafts), parents=parents)
        logits = backend.step(
            make_batch([neighbour, rows, replace(neighbour, block_table=[14])], want_logits=True)
        ).logits
        assert logits is not None
        np.testing.assert_array_equal(logits[-4:], logits[:4], err_msg="the neighbours")
        own = logits[4:-4]
        for draft in range(len(parents)):
            if len(parents) > 20 and draft + 1 in parents[draft + 1 :] and draft % 8:
                continue  # enough of a long stem
            path = [drafts[i] for i in path_of(parents, draft)]
            chain = Rows([*context[start:], *path], start, table, len(path))
            expected = backend.step(make_batch([chain], want_logits=True)).logits
            assert expected is not None
            np.testing.assert_array_equal(
                own[num_new + draft], expected[-1], err_msg=f"root {root}, draft {draft}"
            )


PARAMS: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0, "seed": 3, "top_p": 0.9},
    "penalties": {
        "temperature": 0.8,
        "seed": 5,
        "repetition_penalty": 1.8,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.9,
    },
}


class Request:
    """One request decoded by hand, with drafts or without."""

    def __init__(
        self, backend: Backend, prompt: list[int], table: list[int], params: dict[str, object]
    ) -> None:
        self.backend = backend
        self.tokens = list(prompt)
        self.table = table
        self.packed = pack(SamplingParams(**params, logprobs=2), 0, len(prompt))
        run_logits(backend, prompt[:-1], block_table=table)

    def step(self, drafts: list[int] | None = None, parents: list[int] | None = None) -> StepOutput:
        drafts = drafts or []
        rows = Rows(
            [self.tokens[-1], *drafts],
            len(self.tokens) - 1,
            self.table,
            len(drafts),
            sampling=self.packed.record,
            parents=parents,
        )
        batch = make_batch([rows])
        if self.packed.needs_history:
            batch.history = [np.array(self.tokens, np.int32)]
        out = self.backend.step(batch)
        self.tokens += chosen(out)
        return out


def grown(right: list[int], seed: int, vocab_size: int) -> tuple[list[int], list[int], int]:
    """Drafts around a right path: wrong ones and doubles before, between and after. And how many are right.

    A wrong token here and there is a right one elsewhere, so that history and position decide.
    """
    random = np.random.default_rng(seed)
    tokens: list[int] = []
    parents: list[int] = []
    last = -1
    for token in right:
        for _ in range(random.integers(0, 4)):
            wrong = int(random.choice([random.integers(vocab_size), *right]))
            parent = int(random.integers(-1, len(tokens))) if tokens else -1
            if (parent, wrong) == (last, token):
                continue
            tokens.append(wrong)
            parents.append(parent)
        tokens.append(token)
        parents.append(last)
        last = len(tokens) - 1
    tokens.append(right[0])  # a double of the path's first: the one with the lower index counts
    parents.append(-1)
    return tokens, parents, len(right)


@pytest.mark.parametrize("params", PARAMS)
def test_the_right_path_is_accepted_wherever_it_lies(backend: Backend, params: str) -> None:
    """Tree after tree on one request: tokens, log probabilities and what the KV cache then holds."""
    for prompt_length in (3, 14, 16, 30, 125):
        prompt = tokens_of(backend, prompt_length, prompt_length)
        table = list(range(blocks_for(prompt_length + 100)))
        plain = Request(backend, prompt, table, PARAMS[params])
        outputs = [plain.step() for _ in range(60)]
        drafted = Request(backend, prompt, table[::-1], PARAMS[params])
        for step in range(12):
            done = len(drafted.tokens)
            right = plain.tokens[done : done + 1 + step % 5]
            if len(plain.tokens) - done < 8:
                break
            tokens, parents, num_right = grown(right, step, backend.spec.vocab_size)
            out = drafted.step(tokens, parents)
            assert out.num_accepted[0] >= num_right
            count = len(chosen(out))
            assert drafted.tokens == plain.tokens[: len(drafted.tokens)]
            for index, expected in enumerate(outputs[done - prompt_length :][:count]):
                for name in ("logprobs", "top_token_ids", "top_logprobs"):
                    np.testing.assert_array_equal(getattr(out, name)[0, index], getattr(expected, name)[0, 0])


def test_of_equal_drafts_the_first_is_accepted(backend: Backend) -> None:
    """Only the first one's children count."""
    prompt = tokens_of(backend, 20, "equal")
    plain = Request(backend, prompt, [0], PARAMS["greedy"])
    for _ in range(4):
        plain.step()
    first, second = plain.tokens[20:22]
    request = Request(backend, prompt, [1], PARAMS["greedy"])
    out = request.step([first, first, second], [-1, -1, 1])
    assert out.num_accepted[0] == 1
    assert request.tokens == plain.tokens[:22]


def test_wrong_in_every_way(backend: Backend) -> None:
    prompt = tokens_of(backend, 31, "wrong")
    plain = Request(backend, prompt, [0, 1], PARAMS["greedy"])
    for _ in range(3):
        plain.step()
    wrong = [(token + 1) % backend.spec.vocab_size for token in plain.tokens[31:33]]
    request = Request(backend, prompt, [2, 3], PARAMS["greedy"])
    out = request.step([wrong[0], wrong[1], plain.tokens[32]], [-1, -1, 0])
    assert out.num_accepted[0] == 0
    request.step()
    assert request.tokens == plain.tokens[:33]


@pytest.mark.parametrize("parents", [[0], [-2], [-1, 1], [-1, 5], [1, -1], [-1, -(2**31)]])
def test_parents_that_do_not_precede_are_refused(tiny_checkpoint: TinyFactory, parents: list[int]) -> None:
    made = loaded(tiny_checkpoint, "llama", "int8")
    with pytest.raises(BackendError, match="a draft's parent does not precede it"):
        made.step(make_batch([Rows([1] * (len(parents) + 1), 0, [0], len(parents), parents=parents)]))
    made.step(make_batch([Rows([1, 2, 3], 0, [0], 2, parents=[-1, -1])]))  # still works
    made.close()


def test_more_rows_in_trees_than_the_core_has_room_for_are_refused(tiny_checkpoint: TinyFactory) -> None:
    made = loaded(tiny_checkpoint, "llama", "int8", max_tree_tokens=4)
    tree, chain = Rows([1] * 4, 0, [0], 3, parents=[-1, -1, -1]), Rows([1] * 9, 0, [1], 8)
    made.step(make_batch([tree, chain]))
    with pytest.raises(BackendError, match="6 rows of drafts that branch, and the limit is 4"):
        made.step(make_batch([tree, replace(tree, block_table=[2])]))
    made.close()


def test_parents_that_are_too_few_are_refused(tiny_checkpoint: TinyFactory) -> None:
    made = loaded(tiny_checkpoint, "llama", "int8")
    batch = make_batch([Rows([1, 2, 3], 0, [0], 2)])
    batch.draft_parents = np.array([-1, -1], np.int32)
    with pytest.raises(BackendError, match="'draft_parents' is too small"):
        made.step(batch)
    made.close()

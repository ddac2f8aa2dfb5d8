"""The offline API over the real default model's tokenizer, with the null backend for speed."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from outpace import LLM, SamplingParams
from outpace.errors import (
    ContextLengthError,
    InvalidParameterError,
    ModelNotFoundError,
    OutpaceError,
    UsageError,
)
from outpace.types import FinishReason

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(model_135m: Path) -> Iterator[LLM]:
    with LLM(model_135m, backend="null", kv_cache_bytes=64 << 20, max_num_seqs=8) as made:
        yield made


def test_says_what_it_is(llm: LLM, model_135m: Path) -> None:
    assert llm.model_name == str(model_135m)
    assert llm.spec.architecture == "llama"
    assert llm.config.backend == "null"
    assert llm.load_seconds > 0
    assert llm.chat_template is llm.tokenizer.chat_template


def test_a_text_that_is_far_too_long_is_refused_by_its_beginning(llm: LLM) -> None:
    """Reading all of it would hold up everything else for seconds."""
    begin = time.process_time()
    with pytest.raises(ContextLengthError, match=r"the prompt has about 4[0-9]{6} tokens") as refused:
        llm.generate("the quick brown fox " * 1_000_000, GREEDY)
    assert time.process_time() - begin < 2
    assert refused.value.max_context == llm.config.max_context
    with pytest.raises(ContextLengthError, match=r"has [0-9]+ tokens"):
        llm.generate("fox " * (llm.config.max_context + 9), GREEDY)
    few = "a" + " " * (20 * llm.config.max_context)  # many characters, few tokens
    assert llm.encode_prompt(few) == llm.tokenizer.encode(few)


def test_one_prompt_and_many(llm: LLM) -> None:
    (one,) = llm.generate("Hello", GREEDY)
    ids = llm.tokenizer.encode("Hello")
    assert one.prompt_token_ids == tuple(ids)
    (output,) = one.outputs
    assert len(output.token_ids) == one.num_output_tokens == 12
    assert output.finish_reason is FinishReason.LENGTH
    assert output.text == llm.tokenizer.decode(output.token_ids)
    assert 0 < one.ttft_seconds <= one.total_seconds
    for prompts in (["Hello"], ids, [ids], ["Hello", ids, "Hello"]):
        results = llm.generate(prompts, GREEDY)
        assert [result.outputs[0].token_ids for result in results] == [output.token_ids] * len(results)
        assert len(results) == (3 if len(prompts) == 3 else 1)
    assert llm.generate([], GREEDY) == []


def test_one_prompt_is_what_any_prompt_is(llm: LLM, model_135m: Path) -> None:
    with LLM(model_135m, backend="null", kv_cache_bytes=64 << 20, one_prompt=True) as quick:
        for prompt in ("Hello", "Hello", "def f():", "Grüße 🦆 " * 600):
            (one,), (expected,) = quick.generate(prompt, GREEDY), llm.generate(prompt, GREEDY)
            assert one.prompt_token_ids == expected.prompt_token_ids
            assert one.outputs[0].token_ids == expected.outputs[0].token_ids


def test_a_failure_while_opening_leaves_no_thread(model_135m: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no store")

    monkeypatch.setattr("outpace.engine.new_block_store.new_block_store", fail)
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="no store"):
        LLM(model_135m, backend="null", kv_cache_bytes=64 << 20)
    assert set(threading.enumerate()) == before


def test_results_are_in_order_with_params_for_each(llm: LLM) -> None:
    prompts = [f"prompt {number}" for number in range(30)]
    params = [replace(GREEDY, max_tokens=1 + number % 7) for number in range(30)]
    results = llm.generate(prompts, params)
    assert [result.num_output_tokens for result in results] == [1 + number % 7 for number in range(30)]
    assert [result.prompt_token_ids for result in results] == [
        tuple(llm.tokenizer.encode(prompt)) for prompt in prompts
    ]
    with pytest.raises(InvalidParameterError, match="2 given for 3"):
        llm.generate(["a", "b", "c"], params[:2])


def test_more_prompts_than_the_queue_holds(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.loop.engine, "_max_open", 4)
    results = llm.generate([f"prompt {number}" for number in range(25)], replace(GREEDY, max_tokens=3))
    assert [result.num_output_tokens for result in results] == [3] * 25


def test_choices_and_seed(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, n=3, max_tokens=8, ignore_eos=True, logprobs=1)
    (first,) = llm.generate("Once", params)
    assert [output.index for output in first.outputs] == [0, 1, 2]
    assert all(len(output.logprobs) == 8 for output in first.outputs)
    (again,) = llm.generate("Once", replace(params, seed=first.seed))
    assert [output.token_ids for output in again.outputs] == [output.token_ids for output in first.outputs]


def test_chat_uses_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hi <|im_end|>"}]
    (result,) = llm.chat(messages, GREEDY)
    text = llm.tokenizer.render_chat(messages)
    assert result.prompt_token_ids == tuple(llm.tokenizer.encode(text, add_special=False, parse_special=True))
    results = llm.chat([messages, messages], GREEDY)
    assert [other.outputs[0].token_ids for other in results] == [result.outputs[0].token_ids] * 2


def test_stream_gives_the_same(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    for prompt, whole in (
        ("Hello", llm.generate("Hello", GREEDY)),
        (llm.tokenizer.encode("Hello"), llm.generate("Hello", GREEDY)),
        (messages, llm.chat(messages, GREEDY)),
    ):
        deltas = list(llm.stream(prompt, GREEDY))
        assert "".join(delta.text for delta in deltas) == whole[0].outputs[0].text
        assert deltas[-1].finish_reason is FinishReason.LENGTH


def wait_idle(llm: LLM) -> None:
    pause = threading.Event()
    for _ in range(500):
        if not llm.loop.engine.has_work:
            break
        pause.wait(0.01)
    assert llm.loop.engine.pool.num_held == 0


def test_a_stream_that_is_left_is_aborted(llm: LLM) -> None:
    stream = llm.stream("Hello", replace(GREEDY, max_tokens=None))
    next(stream)
    stream.close()
    wait_idle(llm)


def test_a_bad_prompt_among_many_runs_none(llm: LLM) -> None:
    with pytest.raises(InvalidParameterError, match="empty"):
        llm.generate(["fine", []], replace(GREEDY, max_tokens=None))
    wait_idle(llm)


def test_ctrl_c_aborts(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("outpace.llm._collect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], replace(GREEDY, max_tokens=None))
    wait_idle(llm)


def test_closes_with_the_block_and_twice(model_135m: Path) -> None:
    with LLM(model_135m, backend="null", kv_cache_bytes=16 << 20) as made:
        thread = made.loop._thread
        assert thread.is_alive()
    assert not thread.is_alive()
    made.close()
    with pytest.raises(OutpaceError, match="closed"):
        made.generate("x")


def test_a_forgotten_one_is_closed(model_135m: Path) -> None:
    made = LLM(model_135m, backend="null", kv_cache_bytes=16 << 20)
    thread = made.loop._thread
    del made
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_what_cannot_be_opened(model_135m: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        LLM(tmp_path / "missing.gguf")
    with pytest.raises(UsageError, match="max_num_seqs"):
        LLM(model_135m, backend="null", max_num_seqs=0)


def test_importing_loads_little() -> None:
    code = (
        "import sys, outpace; heavy = {'torch', 'fastapi', 'transformers', 'outpace.llm', 'numpy'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "outpace.LLM, outpace.SamplingParams, outpace.RequestOutput;"
        "assert not {'torch', 'fastapi', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import outpace

    with pytest.raises(AttributeError, match="nothing"):
        outpace.nothing  # noqa: B018 - the access is the test

"""What the usage and the metrics say of a prediction: what the answer has of it, and who drafted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from serving import RunningServer

from outpace.server.prediction_match import PredictionMatch
from outpace.types import SamplingParams

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common subsequence, by the book."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


@given(
    prediction=st.lists(st.integers(0, 5), max_size=200),
    answer=st.lists(st.lists(st.integers(0, 6), max_size=30), max_size=8),
)
def test_it_is_the_longest_common_subsequence(prediction: list[int], answer: list[list[int]]) -> None:
    match = PredictionMatch(prediction)
    for piece in answer:
        match.add(piece)
    assert match.num_accepted == common(prediction, [*chain(*answer)])


def test_a_long_prediction_takes_microseconds_a_token() -> None:
    """A context of 32,768 tokens; a busy machine gets five tries."""
    prediction = [i * i % 2003 for i in range(32_768)]

    def seconds() -> float:
        match = PredictionMatch(prediction)
        start = time.perf_counter()
        match.add([*prediction[:1000], *prediction[2000:3000]])
        assert match.num_accepted >= 1990
        return (time.perf_counter() - start) / 2000

    assert min(seconds() for _ in range(5)) < 200e-6


@pytest.mark.parametrize("key", ["one", "another"])
def test_a_copy_with_a_change_is_counted_exactly(native_server: RunningServer, key: str) -> None:
    """Twice each, so that what the first request said is drafted by others than the prediction."""
    llm = native_server.llm
    params = SamplingParams(temperature=0, max_tokens=40)
    [plain] = llm.chat(MESSAGES, params)
    output = list(plain.outputs[0].token_ids)
    text = plain.outputs[0].text
    predicted = llm.tokenizer.encode(text, add_special=False)
    assert len(predicted) > 20
    assert common(predicted, output) == len(predicted), "the text's tokens are those that the model chose"
    # A sentence before it, a token changed, and a word more at its end: all that the answer does not have.
    word = llm.tokenizer.decode(predicted[10:11])
    changed = [
        *llm.tokenizer.encode("Zebras doze.\n", add_special=False),
        *predicted[:10],
        *llm.tokenizer.encode(" zebra" if word.startswith(" ") else "zebra", add_special=False),
        *predicted[11:],
        *llm.tokenizer.encode(" zebra", add_special=False),
    ]
    sent = llm.tokenizer.encode(llm.tokenizer.decode(changed), add_special=False)
    assert sent == changed, "its text has just these tokens"
    body: dict[str, Any] = {
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": 40,
        "prediction": {"type": "content", "content": llm.tokenizer.decode(sent)},
    }
    for _ in range(2):
        answer = ask(native_server, body, key)
        assert answer["choices"][0]["message"]["content"] == text
        details = answer["usage"]["completion_tokens_details"]
        accepted = len(predicted) - 1
        assert details["accepted_prediction_tokens"] == accepted
        assert details["rejected_prediction_tokens"] == len(sent) - accepted
        native_server.wait_idle()


def ask(server: RunningServer, body: dict[str, Any], key: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(server.url + "/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def draft_metrics(server: RunningServer) -> dict[str, float]:
    """What /metrics says of the proposer "prediction", and what drafting took."""
    families = text_string_to_metric_families(httpx.get(server.url + "/metrics", timeout=60).text)
    return {
        sample.name.removeprefix("outpace:"): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("proposer") == "prediction" or family.name == "outpace:draft_seconds"
    }


def test_metrics_name_who_drafted(native_server: RunningServer) -> None:
    body: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 40}
    text = ask(native_server, body, "metrics")["choices"][0]["message"]["content"]
    native_server.wait_idle()
    before = draft_metrics(native_server)
    body["prediction"] = {"type": "content", "content": text}
    start = time.perf_counter()
    ask(native_server, body, "metrics of another")
    took = time.perf_counter() - start
    native_server.wait_idle()
    now = draft_metrics(native_server)
    grown = {name: value - before.get(name, 0.0) for name, value in now.items()}
    assert 0.0 < grown["draft_seconds_total"] < took
    assert grown["spec_decode_num_accepted_tokens_total"] > 10, "what it predicted is what came"
    assert grown["spec_decode_num_drafts_total"] > 0
    drafted, accepted = (grown[f"spec_decode_num_{name}_tokens_total"] for name in ("draft", "accepted"))
    assert grown["spec_decode_num_rejected_tokens_total"] == drafted - accepted
    assert grown["spec_decode_acceptance_length_count"] == grown["spec_decode_num_drafts_total"]
    assert grown["spec_decode_acceptance_length_sum"] == accepted + grown["spec_decode_num_drafts_total"]

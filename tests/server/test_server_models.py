"""Several models on one server: loaded when a request names one, unloaded when idle or for want of memory."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from serving import listening, slowed

from outpace.config import EngineOptions
from outpace.errors import OutOfMemoryError, UsageError
from outpace.llm import LLM, footprint_of
from outpace.server.model_entry import ModelSource
from outpace.server.model_pool import ModelPool
from outpace.server.run import make_server
from outpace.server.settings import ServerSettings
from outpace.text.grammar import GrammarCompiler

KV_BYTES = 16 << 20
OPTIONS: EngineOptions = {"backend": "null", "max_context": 512, "kv_cache_bytes": KV_BYTES}


@dataclass
class Served:
    http: httpx.Client
    pool: ModelPool

    def complete(self, model: str, **more: Any) -> dict[str, Any]:
        answer = self.http.post(
            "/v1/completions", json={"model": model, "prompt": "a", "max_tokens": 4} | more
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def in_memory(self) -> list[str]:
        return [each["name"] for each in self.http.get("/api/ps").json()["models"]]

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture
def sources(model_135m: Path, tmp_path: Path) -> list[ModelSource]:
    """Three models that are told apart by their names only."""
    found: list[ModelSource] = []
    for name in ("b", "c", "d"):
        path = tmp_path / f"{name}.gguf"
        path.symlink_to(model_135m)
        found.append(ModelSource(name, str(path), OPTIONS, footprint_of(path, OPTIONS)))
    return found


@contextmanager
def serving(model: Path, sources: list[ModelSource], **settings: Any) -> Iterator[Served]:
    """The first model is "a"."""
    with LLM(model, **OPTIONS) as llm:
        server = make_server(
            llm,
            ServerSettings(port=0, shutdown_grace=0.2, **settings),
            model_name="a",
            others=sources,
            unloads=True,
        )
        with listening(server) as url, httpx.Client(base_url=url, timeout=60) as http:
            yield Served(http, server.models)
        server.models.close()


def test_a_request_loads_the_model_that_it_names(model_135m: Path, sources: list[ModelSource]) -> None:
    with serving(model_135m, sources, aliases={"fast": "c"}) as served:
        listed = [each["id"] for each in served.http.get("/v1/models").json()["data"]]
        assert listed == ["a", "b", "c", "d", "fast"]
        assert [each["name"] for each in served.http.get("/api/tags").json()["models"]] == listed
        assert served.in_memory() == ["a"]
        expected = served.complete("a", seed=3)["choices"]
        answer = served.complete("b", seed=3)
        assert (answer["model"], answer["choices"]) == ("b", expected)
        assert served.in_memory() == ["a", "b"]
        assert served.complete("fast")["model"] == "fast"  # an alias of c
        assert served.in_memory() == ["a", "b", "c"]
        assert served.http.get("/health").json()["loaded"] == ["a", "b", "c"]
        metrics = served.http.get("/metrics").text
        assert 'outpace:generation_tokens_total{model_name="b"} 4.0' in metrics
        unknown = served.http.post("/v1/completions", json={"model": "e", "prompt": "a"})
        assert unknown.status_code == 404
        assert "'a', 'b', 'c', 'd'" in unknown.json()["error"]["message"]


def test_a_model_that_comes_later_is_prepared_beside_the_event_loop(
    model_135m: Path, sources: list[ModelSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(model_135m, sources) as served:
        on_loop: list[bool] = []

        def note(_: GrammarCompiler) -> None:
            on_loop.append(asyncio._get_running_loop() is not None)

        monkeypatch.setattr(GrammarCompiler, "warm_up", note)
        served.complete("b")
        assert on_loop == [False]


def test_every_dialect_loads(model_135m: Path, sources: list[ModelSource]) -> None:
    asked: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
        "/v1/completions": {"prompt": "a", "max_tokens": 2},
        "/v1/responses": {"input": "a", "max_output_tokens": 2},
        "/v1/embeddings": {"input": "a"},
        "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
        "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "a"}]},
        "/api/chat": {"messages": [{"role": "user", "content": "a"}], "options": {"num_predict": 2}},
        "/api/generate": {"prompt": "a", "options": {"num_predict": 2}},
        "/api/embed": {"input": "a"},
        "/api/embeddings": {"prompt": "a"},
        "/api/show": {},
    }
    with serving(model_135m, sources) as served:
        for path, body in asked.items():
            for stream in (False, True):
                answer = served.http.post(path, json={"model": "b", "stream": stream} | body)
                assert answer.status_code == 200, (path, answer.text)
                assert served.in_memory() == ["a", "b"], path
            served.until(lambda: not served.pool.find("b")[0].num_running)
            stopped = served.http.post("/api/generate", json={"model": "b", "keep_alive": 0, "stream": False})
            assert stopped.json()["done_reason"] == "unload"
            assert served.in_memory() == ["a"]


def test_the_one_used_last_the_longest_time_ago_goes(model_135m: Path, sources: list[ModelSource]) -> None:
    with serving(model_135m, sources, memory_bytes=2 * KV_BYTES) as served:
        for model, left in (("b", ["a", "b"]), ("a", ["a", "b"]), ("c", ["a", "c"]), ("d", ["c", "d"])):
            served.complete(model)
            assert served.in_memory() == left


def test_answers_are_finished_before_their_model_goes(model_135m: Path, sources: list[ModelSource]) -> None:
    """A stream on each of two models; a third must wait for one of them, and both streams are whole."""
    body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True, "seed": 1}

    def read(model: str, begun: threading.Event) -> int:
        with httpx.stream("POST", url, json=body | {"model": model}, timeout=60) as stream:
            lines = [line for line in stream.iter_lines() if begun.set() is None and line]
        assert lines[-1] == "data: [DONE]"
        return sum(len(json.loads(line[6:])["choices"][0]["text"]) for line in lines[:-1])

    with serving(model_135m, sources, memory_bytes=2 * KV_BYTES) as served, ThreadPoolExecutor(8) as threads:
        url = f"{served.http.base_url}/v1/completions"
        whole = read("a", threading.Event())
        for first, second, third in ("abc", "cda", "dab"):
            begun = [threading.Event(), threading.Event()]
            streams = [threads.submit(read, *each) for each in zip((first, second), begun, strict=True)]
            assert all(each.wait(30) for each in begun)
            later = [threads.submit(served.complete, model) for model in (third, first, second, third)]
            assert [each.result(60) for each in streams] == [whole, whole]
            assert [each.result(60)["model"] for each in later] == [third, first, second, third]
            assert len(served.in_memory()) <= 2


def test_an_idle_model_goes_and_comes_again(model_135m: Path, sources: list[ModelSource]) -> None:
    with serving(model_135m, sources, keep_alive=0.2) as served:
        for _ in range(2):
            served.complete("b")
            served.until(lambda: served.in_memory() == ["a"])  # the first one stays
        load = {"model": "b", "keep_alive": "10m", "stream": False}
        assert served.http.post("/api/generate", json=load).json()["done_reason"] == "load"
        time.sleep(0.4)
        assert served.in_memory() == ["a", "b"]
        load = {"model": "b", "keep_alive": 0.1, "messages": [], "stream": False}
        assert served.http.post("/api/chat", json=load).json()["message"] == {
            "role": "assistant",
            "content": "",
        }
        served.until(lambda: served.in_memory() == ["a"])
        wrong = served.http.post("/api/generate", json={"model": "b", "keep_alive": "soon"})
        assert wrong.status_code == 400
        assert "5m" in wrong.json()["error"]


def test_a_model_in_use_is_stopped_at_the_end(model_135m: Path, sources: list[ModelSource]) -> None:
    body = {"model": "b", "prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with serving(model_135m, sources) as served:
        with served.http.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            [running] = [e for e in served.http.get("/api/ps").json()["models"] if e["name"] == "b"]
            assert running["running_requests"] == 1
            served.http.post("/api/generate", json={"model": "b", "keep_alive": 0})
            assert [line for line in lines if line][-1] == "data: [DONE]"
        served.until(lambda: served.in_memory() == ["a"])
        served.http.post("/api/generate", json={"model": "a", "keep_alive": 0})
        assert served.in_memory() == []
        assert served.http.get("/health").status_code == 200
        assert served.complete("a")["model"] == "a"


def test_a_model_that_cannot_be_loaded(model_135m: Path, sources: list[ModelSource]) -> None:
    with serving(model_135m, sources) as served:
        path = Path(sources[0].model)
        path.unlink()
        for _ in range(2):
            failed = served.http.post("/v1/completions", json={"model": "b", "prompt": "a"})
            assert failed.status_code == 500
            assert "b can't be loaded" in failed.json()["error"]["message"]
        told = served.http.post("/v1/messages", json={"model": "b", "max_tokens": 1, "messages": []})
        assert told.json()["type"] == "error"
        path.write_bytes(model_135m.read_bytes()[:100_000])
        failed = served.http.post("/v1/completions", json={"model": "b", "prompt": "a"})
        assert failed.status_code == 500
        assert served.complete("a")["model"] == "a"
        assert served.complete("c")["model"] == "c"
        path.unlink()
        shutil.copy(model_135m, path)
        assert served.complete("b")["model"] == "b"


def test_what_can_never_fit_is_refused_at_once(model_135m: Path, sources: list[ModelSource]) -> None:
    settings = ServerSettings(memory_bytes=KV_BYTES - 1)
    with LLM(model_135m, **OPTIONS) as llm:
        with pytest.raises(OutOfMemoryError, match="--memory"):
            ModelPool(llm, "a", settings, others=sources, unloads=True)
        with pytest.raises(UsageError, match="two models have the name 'b'"):
            ModelPool(llm, "b", ServerSettings(), others=sources)


def test_a_first_model_that_stays(model_135m: Path, sources: list[ModelSource]) -> None:
    with LLM(model_135m, **OPTIONS) as llm:
        settings = ServerSettings(port=0, memory_bytes=2 * KV_BYTES)
        server = make_server(llm, settings, model_name="a", others=sources)
        with listening(server) as url, httpx.Client(base_url=url, timeout=60) as http:
            served = Served(http, server.models)
            refused = http.post("/api/generate", json={"model": "a", "keep_alive": 0})
            assert refused.status_code == 409
            for model in "bcd":
                served.complete(model)
                assert served.in_memory() == ["a", model]
        server.models.close()
        assert llm.loop.is_running


def test_a_crowd_on_more_models_than_fit(model_135m: Path, sources: list[ModelSource]) -> None:
    """Whoever comes, leaves or stops models meanwhile, an answer is the one that the model gives alone."""
    bodies = [{"prompt": f"tell me {i}", "max_tokens": 8, "seed": i, "temperature": 0.9} for i in range(6)]

    def client(number: int) -> int:
        chance, num_right = random.Random(number), 0
        with httpx.Client(base_url=served.http.base_url, timeout=120) as http:
            for _ in range(8):
                model, i = chance.choice("abcd"), chance.randrange(6)
                body = bodies[i] | {"model": model}
                what = chance.random()
                if what < 0.1:
                    http.post("/api/generate", json={"model": model, "keep_alive": 0})
                elif what < 0.25:
                    with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
                        next(stream.iter_lines())  # and leave
                else:
                    answer = http.post("/v1/completions", json=body).json()
                    assert (answer["model"], answer["choices"]) == (model, alone[i])
                    num_right += 1
        return num_right

    with serving(model_135m, sources, memory_bytes=2 * KV_BYTES) as served:
        alone = [served.complete("a", **body)["choices"] for body in bodies]
        with ThreadPoolExecutor(12) as threads:
            assert sum(threads.map(client, range(12))) > 30
        served.until(lambda: not any(entry.num_running for _, entry in served.pool.named))
        assert len(served.in_memory()) <= 2
        for entry in served.pool.loaded:
            assert entry.served is not None
            entry.served.llm.loop.engine.pool.check()


def test_shutdown_while_a_request_waits_for_its_model(model_135m: Path, sources: list[ModelSource]) -> None:
    body = {"model": "a", "prompt": "a", "max_tokens": 500, "ignore_eos": True, "stream": True, "n": 8}
    with ThreadPoolExecutor(1) as threads:
        with (
            serving(model_135m, sources, memory_bytes=KV_BYTES) as served,
            served.http.stream("POST", "/v1/completions", json=body | {"logprobs": 5}) as stream,
        ):
            next(stream.iter_lines())
            url = f"{served.http.base_url}/v1/completions"
            waits = threads.submit(httpx.post, url, json=body | {"model": "b"}, timeout=60)
            served.until(lambda: bool(served.pool.find("b")[0].waiting))
        answer = waits.result(30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")


LOADS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/api/chat": {"messages": [{"role": "user", "content": "a"}]},
    "/api/generate": {"prompt": "a"},
    "/api/embed": {"input": "a"},
}


def test_nobody_waits_for_a_model_beyond_a_deadline(
    model_135m: Path, sources: list[ModelSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model comes all the same, for whoever else waits for it."""
    body = {"model": "a", "prompt": "a", "max_tokens": 500, "ignore_eos": True, "stream": True}
    with (
        ThreadPoolExecutor(len(LOADS) + 1) as threads,
        serving(model_135m, sources, memory_bytes=KV_BYTES) as served,
    ):
        assert served.pool.first.served is not None
        slowed(served.pool.first.served.llm, monkeypatch, 0.5)
        with served.http.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)  # there is no memory for another model until this ends
            patient = threads.submit(served.complete, "b")
            served.until(lambda: bool(served.pool.find("b")[0].waiting))

            def ask(path: str) -> httpx.Response:
                headers = {"x-outpace-deadline-ms": "100"}
                said = LOADS[path] | {"model": "b"}
                return httpx.post(f"{served.http.base_url}{path}", json=said, headers=headers, timeout=60)

            late = dict(zip(LOADS, threads.map(ask, LOADS), strict=True))
            assert not patient.done()
            assert served.in_memory() == ["a"]
        for path, answer in late.items():
            assert answer.status_code == 408, (path, answer.text)
            assert "b is not loaded yet" in answer.text, path
            assert answer.headers["x-should-retry"] == "false"
        assert patient.result(60)["model"] == "b"


def test_the_anthropic_client(model_135m: Path, sources: list[ModelSource]) -> None:
    with (
        serving(model_135m, sources, aliases={"claude-small": "b"}) as served,
        anthropic.Anthropic(base_url=str(served.http.base_url), api_key="none") as claude,
    ):
        asked: dict[str, Any] = {"max_tokens": 2, "messages": [{"role": "user", "content": "a"}]}
        assert claude.messages.create(model="claude-large", **asked).model == "claude-large"
        assert served.in_memory() == ["a"]
        assert claude.messages.create(model="claude-small", **asked).model == "claude-small"
        assert served.in_memory() == ["a", "b"]

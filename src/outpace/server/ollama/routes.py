"""The Ollama dialect's addresses."""

from __future__ import annotations

import hashlib
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from outpace.server.answer import read_answer
from outpace.server.body import read_json
from outpace.server.client import client_scope
from outpace.server.constraint import compiled_format, compiled_grammar
from outpace.server.conversation import Conversation, answer_params, answer_reader, encode_conversation
from outpace.server.deadlines import deadline_of
from outpace.server.encoding import json_response, to_json
from outpace.server.errors import from_exception, unsupported
from outpace.server.generation import Generation
from outpace.server.model_entry import Entry
from outpace.server.model_pool import ModelPool
from outpace.server.ollama.answer import NDJSON, Answer, error_line, wire_time
from outpace.server.ollama.conversation import answer_format, read_chat, read_prompt
from outpace.server.ollama.params import RENAMED, plain_name, sampling
from outpace.server.ollama.schema import ChatRequest, Common, GenerateRequest, ShowRequest
from outpace.server.openapi import OLLAMA_ERRORS, described
from outpace.server.served import ServedModel
from outpace.server.sse import EventStream
from outpace.text.fill_in_middle import can_fill_in_middle, fill_in_middle
from outpace.types import DraftHints

_VERSION = "0.12.6"
"""Of Ollama, whose dialect this is: editors ask for at least some version."""


def ollama_router(models: ModelPool) -> APIRouter:
    """The dialect's routes over `models`."""
    router = APIRouter(prefix="/api", responses=OLLAMA_ERRORS)

    @router.head("/version", include_in_schema=False)
    @router.get("/version", openapi_extra=described("version"))
    async def version() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction] - a route
        """The version of the dialect."""
        return {"version": _VERSION}

    @router.head("/tags", include_in_schema=False)
    @router.get("/tags", openapi_extra=described("models"))
    async def tags() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction] - a route
        """List the models, in memory or not, then their aliases."""
        return {"models": [_model(models, name, entry) for name, entry in models.named]}

    @router.get("/ps", openapi_extra=described("models"))
    async def running() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction] - a route
        """List the models in memory."""
        return {"models": [_loaded_model(models, entry) for entry in models.loaded]}

    @router.post("/show", openapi_extra=described("details", "model_info", "capabilities", body=ShowRequest))
    async def show(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Describe a model."""
        body = await read_json(request, ShowRequest, models.settings)
        deadline = deadline_of(request, None)
        async with models.lease(plain_name(body.model or body.name), deadline=deadline) as (served, _):
            return json_response(_description(served))

    @router.post(
        "/chat",
        openapi_extra=described("model", "message", "done", body=ChatRequest, stream=NDJSON),
        response_class=Response,
    )
    async def chat(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Answer a conversation, a line of JSON for each piece."""
        body = await read_json(request, ChatRequest, models.settings)
        conversation = read_chat(body)
        if not body.messages:
            return await _load_or_unload(models, request, body, message={"role": "assistant", "content": ""})
        async with _lease(models, request, body) as (served, name):
            return await _converse(served, name, request, body, conversation, "message")

    @router.post(
        "/generate",
        openapi_extra=described("model", "response", "done", body=GenerateRequest, stream=NDJSON),
        response_class=Response,
    )
    async def generate(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Answer a prompt, complete it (`raw`) or fill in what comes before `suffix`.

        Without a prompt, load the model; with `keep_alive` 0 too, unload it.
        """
        body = await read_json(request, GenerateRequest, models.settings)
        if not (body.prompt or body.suffix or body.images):
            return await _load_or_unload(models, request, body, response="")
        async with _lease(models, request, body) as (served, name):
            if _is_raw(served, body):
                return await _complete(served, name, request, body)
            return await _converse(served, name, request, body, read_prompt(body), "response")

    return router


def _lease(
    models: ModelPool, request: Request, body: Common
) -> AbstractAsyncContextManager[tuple[ServedModel, str]]:
    deadline = deadline_of(request, body.deadline_ms)
    return models.lease(plain_name(body.model), body.keep_alive, deadline=deadline)


async def _load_or_unload(models: ModelPool, request: Request, body: Common, **said: object) -> Response:
    """What a request without a prompt means: have the model in memory, or no longer."""
    if body.keep_alive == 0:
        name, reason = await models.expire(plain_name(body.model)), "unload"
    else:
        async with _lease(models, request, body) as (_, name):
            reason = "load"
    answer = {"model": name, "created_at": wire_time(datetime.now(UTC)), **said, "done": True}
    line = to_json({**answer, "done_reason": reason}) + "\n"
    return Response(line, media_type="application/json" if body.stream is False else NDJSON)


def _is_raw(served: ServedModel, body: GenerateRequest) -> bool:
    """Whether a prompt is completed as it stands."""
    return bool(body.suffix or body.raw) or served.llm.chat_template is None


async def _complete(served: ServedModel, name: str, request: Request, body: GenerateRequest) -> Response:
    def encode() -> list[int]:
        if body.suffix:
            return fill_in_middle(served.llm.tokenizer, prompt_text, body.suffix)
        return served.llm.encode_prompt(prompt_text)

    prompt_text = body.prompt or ""
    params = sampling(body, served.settings.sampling)
    if body.images:
        raise unsupported("images", "this model reads text only")
    try:
        prompt = await served.encode(len(prompt_text) + len(body.suffix or ""), encode)
        params = replace(params, grammar=await compiled_format(served, answer_format(body)))
        generation = await served.start([prompt], params, _hints(request, body))
    except Exception as error:
        raise from_exception(error, RENAMED) from error
    read = partial(read_answer, new_parser=lambda: None, new_count=lambda: None, parallel=True)
    return await _send(served, request, body, Answer(name, "response", read, thinks=False), generation)


async def _converse(
    served: ServedModel,
    name: str,
    request: Request,
    body: Common,
    conversation: Conversation,
    kind: Literal["message", "response"],
) -> Response:
    params = sampling(body, served.settings.sampling)
    # The body's length is as good a measure of the work as the texts in it. Without one it came in chunks.
    num_chars = int(request.headers.get("content-length", served.settings.max_body_bytes))
    try:
        prompt = await served.encode(num_chars, lambda: encode_conversation(served, conversation))
        grammar = await compiled_grammar(served, conversation, prompt)
        params = answer_params(served, conversation, params, grammar)
        generation = await served.start([prompt.token_ids], params, _hints(request, body))
    except Exception as error:
        raise from_exception(error, RENAMED) from error
    read = answer_reader(served, conversation, prompt)
    return await _send(
        served, request, body, Answer(name, kind, read, thinks=body.think is not False), generation
    )


def _hints(request: Request, body: Common) -> DraftHints:
    return DraftHints(client_scope(request), deadline=deadline_of(request, body.deadline_ms))


async def _send(
    served: ServedModel, request: Request, body: Common, answer: Answer, generation: Generation
) -> Response:
    if body.stream is not False:
        silence = served.settings.heartbeat
        return EventStream(
            answer.lines(generation), generation, silence, error_line, answer.nothing_yet, NDJSON
        )
    async with generation.cancelled_on_disconnect(request.receive):
        return json_response(await answer.whole(generation))


def _model(models: ModelPool, name: str, entry: Entry) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": wire_time(datetime.fromtimestamp(models.created, UTC)),
        "size": entry.source.footprint.weight_bytes,
        "digest": hashlib.sha256(name.encode()).hexdigest(),  # clients show its beginning
        "details": _details(entry.served.llm.spec.architecture if entry.served else ""),
    }


def _loaded_model(models: ModelPool, entry: Entry) -> dict[str, Any]:
    return {
        **_model(models, entry.name, entry),
        "size": entry.source.footprint.num_bytes,
        "expires_at": wire_time(entry.expires_at),
        "size_vram": 0,
        "context_length": entry.max_context,
        "running_requests": entry.num_running,  # not Ollama's
    }


def _details(family: str) -> dict[str, Any]:
    return {
        "format": "gguf",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": "",
        "quantization_level": "",
    }


def _description(served: ServedModel) -> dict[str, Any]:
    spec = served.llm.spec
    info = {
        "general.architecture": spec.architecture,
        f"{spec.architecture}.context_length": served.max_context,
        f"{spec.architecture}.embedding_length": spec.hidden_size,
        f"{spec.architecture}.block_count": spec.num_layers,
        f"{spec.architecture}.attention.head_count": spec.num_heads,
        f"{spec.architecture}.attention.head_count_kv": spec.num_kv_heads,
    }
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _details(spec.architecture),
        "model_info": info,
        "capabilities": _capabilities(served),
    }


def _capabilities(served: ServedModel) -> list[str]:
    found = ["completion"]
    if served.llm.chat_template is not None:
        found.append("tools")
    if can_fill_in_middle(served.llm.tokenizer):
        found.append("insert")
    if served.form.thoughts is not None:
        found.append("thinking")
    return found

"""The offline API: a model, its tokenizer and its engine behind one object."""

from __future__ import annotations

import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast

from outpace import backends
from outpace.config import EngineOptions, resolve_engine_config
from outpace.errors import ContextLengthError, InvalidParameterError, OverloadedError
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.models.hub import DEFAULT_MODEL, locate, resolve
from outpace.types import (
    Backend,
    Drafter,
    DraftHints,
    EngineConfig,
    FinishReason,
    SamplingParams,
    TokenDelta,
    TokenLogprob,
)

if TYPE_CHECKING:
    from outpace.engine.loop import EngineLoop, RequestStream
    from outpace.text.tokenizer import Tokenizer

__all__ = ["LLM", "CompletionOutput", "Footprint", "RequestOutput", "footprint_of"]

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One choice of a finished request."""

    index: int
    text: str
    token_ids: tuple[int, ...]  # the stop id that ended it, if one did, included
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()  # one for each token, where SamplingParams.logprobs asks
    error: str | None = None  # with FinishReason.ERROR


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request: its choices, what it took and how long."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    outputs: list[CompletionOutput]  # one for each of `n`
    seed: int  # given or drawn; the same seed gives the same answer
    num_cached_tokens: int  # prompt tokens found in the prefix cache
    num_drafted: int  # draft tokens proposed, all choices
    num_accepted: int  # draft tokens accepted, all choices
    ttft_seconds: float  # from submit to the first token
    total_seconds: float  # from submit to the end

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(output.token_ids) for output in self.outputs)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes, known from its header."""

    weight_bytes: int  # within a few percent; 0 for the null backend
    kv_cache_bytes: int
    max_context: int  # tokens that prompt and answer may have together

    @property
    def num_bytes(self) -> int:
        """Memory in all."""
        return self.weight_bytes + self.kv_cache_bytes


_CHARACTERS = 16  # for each token of the context: a text of more is looked at from its beginning first


class LLM:
    """A model ready to generate.

    `model` is a path, a short name, a Hugging Face repository or a file in a Python package (see
    `outpace pull --help`); the further arguments are the fields of `EngineConfig`. `progress` is called
    with (bytes done, bytes in all) while the model is brought. `one_prompt` promises little more than one
    prompt: the first token comes up to 0.2 s sooner, and that of the second prompt as much later.

    Attributes: `model_name` and `options`, as given; `spec`, the architecture; `tokenizer`; `chat_template`
    (None where the model has none); `backend`; `config`, resolved; `footprint`; `loop`, which takes requests
    from any thread; `load_seconds`, from opening the file to being ready, downloads excluded.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        progress: Callable[[int, int], None] | None = None,
        one_prompt: bool = False,
        **config: Unpack[EngineOptions],
    ) -> None:
        path = resolve(str(model), progress=progress)
        start = time.perf_counter()
        self._open(open_checkpoint(path), config, one_prompt=one_prompt, progress=progress)
        self.model_name, self.options = str(model), config
        self.load_seconds = time.perf_counter() - start

    def _open(
        self,
        checkpoint: Checkpoint,
        options: EngineOptions,
        *,
        one_prompt: bool,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.config = resolve_engine_config(checkpoint.spec, options)
        self.spec = checkpoint.spec
        self.footprint = _footprint(checkpoint, self.config)
        # The tokenizer is imported and built while the weights are read, which does not hold the interpreter.
        with ThreadPoolExecutor(1, "outpace-tokenizer") as executor:
            tokenizer = executor.submit(_tokenizer, checkpoint, lazy=one_prompt)
            self.backend = backends.create(checkpoint, self.config)
            from outpace.engine.engine import Engine
            from outpace.engine.loop import EngineLoop
            from outpace.engine.new_block_store import new_block_store
            from outpace.engine.new_drafter import new_drafter
        with ExitStack() as opened:  # what is to be closed where something fails from here on
            opened.callback(self.backend.close)
            self.tokenizer = tokenizer.result()
            drafter = new_drafter(
                checkpoint,
                self.backend,
                self.tokenizer,
                self.config,
                measure=not one_prompt,
                progress=progress,
            )
            opened.callback(drafter.close)
            store = new_block_store(checkpoint, self.backend, self.config)
            self.chat_template = self.tokenizer.chat_template
            self.loop = EngineLoop(Engine(self.backend, self.tokenizer, self.config, drafter, store=store))
            opened.pop_all()
        self._finalizer = weakref.finalize(self, _shut_down, self.loop, drafter, self.backend)

    # --- generation -----------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete one prompt or many, text or token ids; the results are in the prompts' order.

        `params` is one for all or one for each. Ctrl-C aborts them all. A request whose step failed has
        `FinishReason.ERROR`. Raises `InvalidParameterError`, `ContextLengthError`, `OutOfMemoryError`.
        """
        return self._run([self.encode_prompt(prompt) for prompt in _as_prompts(prompts)], params)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or many. As `generate`; `UnsupportedModelError` without a template."""
        conversations = _as_conversations(messages)
        return self._run([self.encode_chat(each, tools=tools) for each in conversations], params)

    def stream(
        self,
        prompt_or_messages: Prompt | Messages,
        params: SamplingParams | None = None,
        *,
        hints: DraftHints | None = None,
    ) -> Iterator[TokenDelta]:
        """Complete a prompt, or answer a conversation, piece by piece. Closing the iterator aborts it.

        `hints` may change when tokens come, never which.
        """
        token_ids = self._encode(prompt_or_messages)
        return _iterate(self.loop.submit(token_ids, params or SamplingParams(), hints=hints))

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids: text is encoded, special tokens in it recognised; ids pass unchanged.

        Raises `ContextLengthError` for a text so long that its beginning says that it can't fit.
        """
        return self.encode_text(prompt, add_special=True) if isinstance(prompt, str) else list(prompt)

    def encode_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **template: object,
    ) -> list[int]:
        """A conversation's token ids through the model's chat template; `template` goes to the template."""
        text = self.tokenizer.render_chat(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **template
        )
        return self.encode_text(text, add_special=False)

    def encode_text(self, text: str, *, add_special: bool, refuse: bool = True) -> list[int]:
        """A text's token ids, special tokens in it recognised, those around it with `add_special`.

        With `refuse`, of a text that is far too long only the beginning is encoded: the whole would hold up
        everything else for seconds, and be refused then. Raises `ContextLengthError` for such a one.
        """
        limit = self.config.max_context
        beginning = text[: _CHARACTERS * limit]
        if refuse and len(beginning) < len(text):
            found = len(self.tokenizer.encode(beginning, add_special=False, parse_special=True))
            if found > 2 * limit:  # more by far than the cut can have made
                about = round(found * len(text) / len(beginning))
                own = self.spec.max_context
                raise ContextLengthError(about, limit, model_context=own, estimated=True)
        return self.tokenizer.encode(text, add_special=add_special, parse_special=True)

    def _encode(self, prompt_or_messages: Prompt | Messages) -> list[int]:
        first = None if isinstance(prompt_or_messages, str) else next(iter(prompt_or_messages), None)
        if isinstance(first, Mapping):
            return self.encode_chat(cast(Messages, prompt_or_messages))
        return self.encode_prompt(cast(Prompt, prompt_or_messages))

    def _run(
        self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[RequestOutput]:
        each = _params_for(len(prompts), params)
        streams: list[RequestStream] = []
        outputs: list[RequestOutput] = []
        try:
            for prompt, sampling in zip(prompts, each, strict=True):
                streams.append(self._submit(prompt, sampling, prompts, streams, outputs))
            while len(outputs) < len(streams):
                outputs.append(_collect(streams[len(outputs)], prompts[len(outputs)]))
        finally:  # an error or Ctrl-C: nothing keeps running unseen
            for stream in streams[len(outputs) :]:
                stream.cancel()
        return outputs

    def _submit(
        self,
        prompt: list[int],
        params: SamplingParams,
        prompts: list[list[int]],
        streams: list[RequestStream],
        outputs: list[RequestOutput],
    ) -> RequestStream:
        """Submit; while the queue is full, wait for the oldest request that is still open."""
        while True:
            try:
                return self.loop.submit(prompt, params, uuid.uuid4().hex)
            except OverloadedError:
                if len(outputs) == len(streams):
                    raise
                outputs.append(_collect(streams[len(outputs)], prompts[len(outputs)]))

    # --- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Abort what runs and give the memory back. Safe to call twice; also happens at exit."""
        self._finalizer()

    def __enter__(self) -> LLM:
        """Close at the end of a `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def footprint_of(model: str | Path, options: EngineOptions) -> Footprint:
    """What `LLM(model, **options)` would take, from the model's header. `model` must be on this machine.

    Raises as `LLM` does.
    """
    checkpoint = open_checkpoint(locate(str(model)))
    return _footprint(checkpoint, resolve_engine_config(checkpoint.spec, options))


def _footprint(checkpoint: Checkpoint, config: EngineConfig) -> Footprint:
    weights = 0 if config.backend == "null" else checkpoint.weight_bytes(config.weight_format)
    return Footprint(weights, config.kv_cache_bytes, config.max_context or checkpoint.spec.max_context)


def _tokenizer(checkpoint: Checkpoint, *, lazy: bool) -> Tokenizer:
    from outpace.text.tokenizer import Tokenizer

    return Tokenizer.from_checkpoint(checkpoint, lazy=lazy)


def _shut_down(loop: EngineLoop, drafter: Drafter, backend: Backend) -> None:
    loop.close()
    loop.engine.close()
    drafter.close()
    backend.close()


def _iterate(stream: RequestStream) -> Iterator[TokenDelta]:
    try:
        yield from stream
    finally:
        stream.cancel()


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [cast(Sequence[int], prompts)]
    return cast(Sequence[Prompt], prompts)


def _as_conversations(messages: Messages | Sequence[Messages]) -> Sequence[Messages]:
    if messages and isinstance(messages[0], Mapping):
        return [cast(Messages, messages)]
    return cast(Sequence[Messages], messages)


def _params_for(
    num_prompts: int, params: SamplingParams | Sequence[SamplingParams] | None
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if len(params) != num_prompts:
        raise InvalidParameterError(
            f"params: {len(params)} given for {num_prompts} prompts; give one for all or one for each",
            "params",
        )
    return params


def _collect(stream: RequestStream, prompt: list[int]) -> RequestOutput:
    """Read a stream to its end."""
    num_choices = stream.params.n
    deltas: list[list[TokenDelta]] = [[] for _ in range(num_choices)]
    for delta in stream:
        deltas[delta.index].append(delta)
    last = [choice[-1] for choice in deltas]
    finished_at = stream.finished_at or stream.submitted_at
    return RequestOutput(
        request_id=stream.request_id,
        prompt_token_ids=tuple(prompt),
        outputs=[_completion(choice) for choice in deltas],
        seed=stream.params.seed or 0,
        num_cached_tokens=last[0].num_cached_tokens,
        num_drafted=sum(delta.num_drafted for delta in last),
        num_accepted=sum(delta.num_accepted for delta in last),
        ttft_seconds=(stream.first_token_at or finished_at) - stream.submitted_at,
        total_seconds=finished_at - stream.submitted_at,
    )


def _completion(deltas: list[TokenDelta]) -> CompletionOutput:
    last = deltas[-1]
    return CompletionOutput(
        index=last.index,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        finish_reason=last.finish_reason or FinishReason.ERROR,
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        error=last.error,
    )

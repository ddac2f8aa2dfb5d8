"""What a request for `/infill` looks like on the wire, as llama.cpp's server states it."""

from __future__ import annotations

from typing import Annotated

from outpace.server.wire import FirstError, Wire


class ExtraFile(Wire):
    """Another piece of the project."""

    text: str
    filename: str = "tmp"


class InfillRequest(Wire):
    """The body of `POST /infill`. Times are no limit here: `n_predict` is."""

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[ExtraFile], FirstError()] | None = None
    prompt: str | None = None  # how the answer begins already
    n_predict: int | None = None  # -1: to the end; 0: compute the prompt only
    stream: bool | None = None
    deadline_ms: float | None = None  # from the request's arrival on; then the answer ends as it is
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None  # -1: drawn
    stop: list[str] | None = None
    response_fields: list[str] | None = None  # of the answer, slashes between nested names

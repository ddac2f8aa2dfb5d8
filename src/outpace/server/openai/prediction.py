"""Predicted outputs: what a client expects the answer to resemble. They change when it comes, never what."""

from __future__ import annotations

from outpace.server.errors import APIError
from outpace.server.openai.conversation import text_of
from outpace.server.openai.schema import ChatRequest
from outpace.server.served import ServedModel


def predicted_text(request: ChatRequest) -> str:
    """The text of the request's `prediction`; "" without one. Raises `APIError` for parts without text."""
    if request.prediction is None:
        return ""
    return text_of(request.prediction.content, "prediction")


def encode_prediction(served: ServedModel, text: str) -> list[int]:
    """The token ids of a prediction. Raises `APIError` where no answer could be that long."""
    token_ids = served.llm.tokenizer.encode(text, add_special=False) if text else []
    if len(token_ids) > served.max_context:
        limit = served.max_context
        message = f"'prediction' has {len(token_ids)} tokens, but the context holds {limit}; shorten it"
        raise APIError(400, message, param="prediction", code="invalid_value")
    return token_ids

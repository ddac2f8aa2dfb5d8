"""Tokenizers that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from outpace.models.checkpoint import open_checkpoint
from outpace.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def smollm(model_135m: Path) -> Tokenizer:
    return Tokenizer.from_checkpoint(open_checkpoint(model_135m))


@pytest.fixture(scope="session")
def qwen(model_05b: Path) -> Tokenizer:
    return Tokenizer.from_checkpoint(open_checkpoint(model_05b))

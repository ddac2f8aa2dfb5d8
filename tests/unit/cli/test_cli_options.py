"""Options that verbs share."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner, Result

from outpace.cli.options import EngineFlags, SamplingFlags, flatten, parse_size
from outpace.errors import UsageError
from outpace.text.grammar import any_lark
from outpace.types import EngineConfig, Grammar, SamplingParams

Invoke = Callable[..., Result]


@pytest.mark.parametrize(
    ("text", "size"),
    [("7", 7), ("512MiB", 512 << 20), ("1.5GB", 1_500_000_000), ("4g", 4_000_000_000), ("2 KiB", 2048)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "MB", "1XB", "1 2", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="size"):
        parse_size(text)


def test_every_engine_setting_is_an_option() -> None:
    settings = {field.name for field in dataclasses.fields(EngineConfig)}
    assert {field.name for field in dataclasses.fields(EngineFlags)} == settings


def test_the_help_of_every_engine_option_says_what_holds_without_it(invoke: Invoke) -> None:
    text = " ".join(invoke("run", "--help").stdout.split())
    assert "Requests that run at once; more wait. Default: 64." in text
    assert "Reuse the KV cache of equal prompt beginnings. Default: yes." in text
    engine = text[text.index("--backend") : text.index("-h, --help")]
    without = {"--draft-model", "--draft-head"}
    for option in re.split(r"(?<!/) (?=--[a-z])", engine):
        assert option.split()[0] in without or "efault" in option, option


def test_every_sampling_option_is_a_parameter() -> None:
    parameters = {field.name for field in dataclasses.fields(SamplingParams)}
    options = {field.name for field in dataclasses.fields(SamplingFlags)}
    assert options - {"json_schema", "regex"} <= parameters, "those two are kinds of grammar"


def test_a_grammar_is_given_as_text_or_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "integer"}')
    for option, value, grammar in (
        ("--json-schema", f"@{tmp_path}/schema.json", Grammar("json_schema", '{"type": "integer"}')),
        ("--regex", "@[a-z]+", Grammar("regex", "@[a-z]+")),
        ("--grammar", 'start: "x"', Grammar("lark", 'start: "x"')),
        ("--grammar", 'root ::= "x"', any_lark('root ::= "x"')),
    ):
        params = call(option, value)["params"]
        assert isinstance(params, SamplingParams)
        assert params.grammar == grammar


def test_one_grammar_is_enough() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        SamplingFlags(regex="a", grammar="b").as_params(temperature=0)
    with pytest.raises(UsageError, match="cannot be read"):
        SamplingFlags(json_schema="@/no/such/file").as_params(temperature=0)


def call(*arguments: str) -> dict[str, object]:
    seen: dict[str, object] = {}

    @flatten
    def verb(name: Annotated[str, typer.Argument()], *, sampling: SamplingFlags, engine: EngineFlags) -> None:
        seen.update(name=name, params=sampling.as_params(temperature=0.5), config=engine.as_config())

    app = typer.Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, ["it", *arguments])
    assert result.exit_code == 0, result.output
    return seen


def test_options_arrive_in_their_dataclasses() -> None:
    seen = call(
        "--threads", "3", "--kv-cache", "1KiB", "--no-prefix-cache", "--draft", "off",
        "--top-k", "5", "--stop", "a", "--stop", "b", "--ignore-eos", "-n", "9",
    )  # fmt: skip
    assert seen["name"] == "it"
    assert seen["config"] == {
        "num_threads": 3,
        "kv_cache_bytes": 1024,
        "prefix_cache": False,
        "draft": "off",
    }
    assert seen["params"] == SamplingParams(
        temperature=0.5, top_k=5, stop=("a", "b"), ignore_eos=True, max_tokens=9
    )


def test_what_is_not_given_stays_at_the_default() -> None:
    seen = call()
    assert seen["config"] == {}
    assert seen["params"] == SamplingParams(temperature=0.5)
    assert call("-t", "0")["params"] == SamplingParams(temperature=0.0)


def test_flatten_leaves_other_parameters_alone() -> None:
    def verb(name: str = "x", *, sampling: SamplingFlags) -> None:
        """Docs."""

    flat = flatten(verb)
    parameters = inspect.signature(flat).parameters
    assert parameters["name"].default == "x"
    assert "sampling" not in parameters
    assert "seed" in parameters
    assert flat.__doc__ == "Docs."

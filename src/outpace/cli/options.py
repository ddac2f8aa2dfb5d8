"""Options that several verbs share, declared once as dataclasses of typer annotations.

`@flatten` turns a verb that takes such a dataclass into one that takes its fields as options.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args, get_type_hints

import typer

from outpace.errors import UsageError
from outpace.types import EngineConfig, Grammar, SamplingParams

if TYPE_CHECKING:
    from typer.models import OptionInfo

    from outpace.config import EngineOptions

ENGINE_PANEL = "Engine"
SAMPLING_PANEL = "Sampling"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from `512MiB`, `1.5GB`, `4g` (powers of 1000; with an `i` powers of 1024) or a plain number."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size; write for instance 512MiB or 2GB")
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


def utf8(text: str, what: str) -> str:
    """The text as it is. Raises `UsageError` where the shell passed bytes that are no text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not UTF-8; convert it, for instance with iconv") from None
    return text


ShowDraftsFlag = Annotated[
    bool, typer.Option("--show-drafts", help="Colour what was drafted by who drafted it.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFlags:
    """The engine's settings as options. None leaves a setting to the environment or the default."""

    backend: Annotated[
        Literal["native", "torch", "null"] | None,
        typer.Option(help="What runs the forward pass; null has no weights.", rich_help_panel=ENGINE_PANEL),
    ] = None
    num_threads: Annotated[
        int | None,
        typer.Option("--threads", help="CPU threads; default: one per core.", rich_help_panel=ENGINE_PANEL),
    ] = None
    pin_threads: Annotated[
        bool | None,
        typer.Option(
            "--pin/--no-pin",
            help="Keep each thread to a core, where cores have siblings.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None
    isa: Annotated[
        str | None,
        typer.Option(
            help="Force an instruction set tier: portable, avx2, avxvnni, avx512vnni, amx, neon, "
            "neon-dotprod or neon-i8mm.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None
    weight_format: Annotated[
        Literal["keep", "q8_0", "q4_0"] | None,
        typer.Option(
            help="What weights of more bits than that become at load.", rich_help_panel=ENGINE_PANEL
        ),
    ] = None
    kv_format: Annotated[
        Literal["int8", "f16"] | None,
        typer.Option(help="How the KV cache is kept.", rich_help_panel=ENGINE_PANEL),
    ] = None
    prefill: Annotated[
        Literal["exact", "fast"] | None,
        typer.Option(
            help="fast: read prompts in bf16 (AMX only); quicker, and answers may differ from exact ones.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None
    max_context: Annotated[
        int | None,
        typer.Option(
            help="Tokens per request; default: the model's own limit.", rich_help_panel=ENGINE_PANEL
        ),
    ] = None
    kv_cache_bytes: Annotated[
        int | None,
        typer.Option(
            "--kv-cache",
            metavar="SIZE",
            parser=parse_size,
            help="Memory for the KV cache, e.g. 512MiB; default: from free memory.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None
    max_num_seqs: Annotated[
        int | None,
        typer.Option(help="Requests that run at once; more wait.", rich_help_panel=ENGINE_PANEL),
    ] = None
    max_batch_tokens: Annotated[
        int | None, typer.Option(help="Rows in one step.", rich_help_panel=ENGINE_PANEL)
    ] = None
    max_queue_seconds: Annotated[
        int | None,
        typer.Option(
            help="Refuse requests while reading the prompts that wait takes longer; default: 600; 0: never.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None
    max_stall_ms: Annotated[
        int | None,
        typer.Option(
            help="How long another's prompt may hold up a running stream, milliseconds; 0: no bound.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None
    prefix_cache: Annotated[
        bool | None,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            help="Reuse the KV cache of equal prompt beginnings.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None
    prefix_cache_disk_bytes: Annotated[
        int | None,
        typer.Option(
            "--prefix-cache-disk",
            metavar="SIZE",
            parser=parse_size,
            help="Disk for it, across restarts; 0: none. Default: 8GB for serve, else none.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None
    prefix_sharing: Annotated[
        Literal["scope", "all"] | None,
        typer.Option(
            help="Reuse for the same client key (scope), or for all.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None
    draft: Annotated[
        Literal["off", "auto"] | None,
        typer.Option(help="Speculative decoding; never changes an answer.", rich_help_panel=ENGINE_PANEL),
    ] = None
    max_draft_tokens: Annotated[
        int | None,
        typer.Option(help="Draft tokens per request and step.", rich_help_panel=ENGINE_PANEL),
    ] = None
    max_tree_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of drafts that branch, per step.", rich_help_panel=ENGINE_PANEL),
    ] = None
    draft_model: Annotated[
        str | None,
        typer.Option(
            help="A smaller model with the same vocabulary, run ahead in 4 bits.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None
    draft_head: Annotated[
        str | None,
        typer.Option(help="The folder of a draft head trained for the model.", rich_help_panel=ENGINE_PANEL),
    ] = None
    draft_sharing: Annotated[
        Literal["off", "scope", "all"] | None,
        typer.Option(
            help="Draft from earlier requests: none's, those of the same client key, all.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None
    draft_index_tokens: Annotated[
        int | None,
        typer.Option(
            help="Earlier tokens kept to draft from, of all clients of a model: 40 bytes of memory and 8 on "
            "disk each; default: 1048576.",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None
    draft_persist: Annotated[
        bool | None,
        typer.Option(
            "--draft-persist/--no-draft-persist",
            help="Keep them on disk, across restarts (OUTPACE_DRAFT_PERSIST).",
            rich_help_panel=ENGINE_PANEL,
        ),
    ] = None

    def as_config(self) -> EngineOptions:
        """The fields of `EngineConfig` that were given, as `LLM` takes them."""
        values = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        given = {name: value for name, value in values.items() if value is not None}
        return cast("EngineOptions", given)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingFlags:
    """How tokens are chosen, as options. None leaves a field to the verb's own default."""

    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            "-n",
            help="Longest answer; default: as the context allows.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", "-t", help="0: greedy; default: 0, in chat 0.7.", rich_help_panel=SAMPLING_PANEL
        ),
    ] = None
    top_k: Annotated[
        int | None, typer.Option(help="0: off, the default.", rich_help_panel=SAMPLING_PANEL)
    ] = None
    top_p: Annotated[
        float | None, typer.Option(help="1: off, the default.", rich_help_panel=SAMPLING_PANEL)
    ] = None
    min_p: Annotated[
        float | None, typer.Option(help="0: off, the default.", rich_help_panel=SAMPLING_PANEL)
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Over prompt and answer; 1: off, the default.", rich_help_panel=SAMPLING_PANEL),
    ] = None
    presence_penalty: Annotated[
        float | None, typer.Option(help="0: off, the default.", rich_help_panel=SAMPLING_PANEL)
    ] = None
    frequency_penalty: Annotated[
        float | None, typer.Option(help="0: off, the default.", rich_help_panel=SAMPLING_PANEL)
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(help="Same seed, same answer; default: drawn.", rich_help_panel=SAMPLING_PANEL),
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End before this text; may be repeated.", rich_help_panel=SAMPLING_PANEL),
    ] = None
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on to --max-tokens.", rich_help_panel=SAMPLING_PANEL)
    ] = False
    json_schema: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|@FILE", help="Answer in JSON of this schema.", rich_help_panel=SAMPLING_PANEL
        ),
    ] = None
    regex: Annotated[
        str | None,
        typer.Option(help="Answer what this expression matches.", rich_help_panel=SAMPLING_PANEL),
    ] = None
    grammar: Annotated[
        str | None,
        typer.Option(
            metavar="GRAMMAR|@FILE",
            help="Answer by this grammar, in Lark's form or GBNF.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = None

    def as_params(self, *, temperature: float) -> SamplingParams:
        """The sampling parameters; `temperature` is the verb's default."""
        values: dict[str, Any] = {"temperature": temperature, "grammar": self._grammar()}
        for text in self.stop or ():
            utf8(text, "--stop")
        for spec in fields(self):
            if spec.name not in _GRAMMAR_OPTIONS and (value := getattr(self, spec.name)) is not None:
                values[spec.name] = tuple(value) if spec.name == "stop" else value
        return SamplingParams(**values)

    def _grammar(self) -> Grammar | None:
        given = {name: value for name in _GRAMMAR_OPTIONS if (value := getattr(self, name)) is not None}
        if len(given) > 1:
            raise UsageError("--json-schema, --regex and --grammar exclude each other; give one of them")
        for name, value in given.items():
            text = utf8(value, f"--{name.replace('_', '-')}")
            match name:
                case "json_schema":
                    return Grammar("json_schema", _text_or_file(text))
                case "regex":
                    return Grammar("regex", text)
                case _:
                    from outpace.text.grammar import any_lark

                    return any_lark(_text_or_file(text))
        return None


_GRAMMAR_OPTIONS = ("json_schema", "regex", "grammar")


def _text_or_file(value: str) -> str:
    """An option's text, or that of the file that it names after an @."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{value}: cannot be read as UTF-8 text: {error}") from None


@dataclass(frozen=True, slots=True)
class _Group:
    """One dataclass parameter of a verb and the option names that stand for it."""

    name: str
    type: Callable[..., object]
    fields: tuple[str, ...] = field(default=())


def _show_defaults(hints: Mapping[str, Any]) -> None:
    """Say in the help of each engine option what holds where it is not given, as `EngineConfig` has it."""
    for spec in fields(EngineConfig):
        option = cast("OptionInfo", get_args(hints[spec.name])[1])
        if option.help and "default" not in option.help.lower() and spec.default != "":
            shown = ("no", "yes")[spec.default] if isinstance(spec.default, bool) else spec.default
            option.help += f" Default: {shown}."


def flatten(verb: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of `verb` whose type is a dataclass by that dataclass's fields."""
    hints = get_type_hints(verb, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: list[_Group] = []
    for parameter in inspect.signature(verb).parameters.values():
        hint = hints[parameter.name]
        if not (isinstance(hint, type) and is_dataclass(hint)):
            parameters.append(parameter.replace(annotation=hint))
            continue
        group_hints = get_type_hints(hint, include_extras=True)
        if hint is EngineFlags:
            _show_defaults(group_hints)
        groups.append(_Group(parameter.name, hint, tuple(spec.name for spec in fields(hint))))
        parameters += [
            inspect.Parameter(
                spec.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if spec.default is MISSING else spec.default,
                annotation=group_hints[spec.name],
            )
            for spec in fields(hint)
        ]

    def call(**values: Any) -> None:
        for group in groups:
            values[group.name] = group.type(**{name: values.pop(name) for name in group.fields})
        verb(**values)

    call.__name__, call.__doc__, call.__module__ = verb.__name__, verb.__doc__, verb.__module__
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__dict__["__signature__"] = inspect.Signature(parameters)
    return call

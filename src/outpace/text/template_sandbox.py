"""jinja2's sandbox, set up as transformers sets it up for chat templates, and bounded.

A chat template is a program from an unknown author. jinja2 keeps it from Python's internals; this module
keeps it from running forever or filling the memory: every loop round and every call looks at the clock,
and every operation that can make much out of little is checked before it runs and charged after.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.visitor

from outpace.text.template_limits import (
    Budget,
    check_filter,
    check_format,
    check_method,
    check_operator,
    check_size,
    count_nodes,
)


class _Rounds:
    """An iterable that looks at the clock every round."""

    def __init__(self, items: Iterable[object], budget: Budget) -> None:
        self._items = items
        self._budget = budget

    def __iter__(self) -> Iterator[object]:
        for item in self._items:
            self._budget.tick()
            yield item

    def __len__(self) -> int:
        return len(cast(list[object], self._items))  # TypeError where it has no length, as jinja2 expects


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which marks the assistant's text for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """A block whose text is its body's."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("render_body"), [], [], body).set_lineno(line)

    def render_body(self, caller: Callable[[], str]) -> str:
        """What the block says."""
        return caller()


class _TemplateDict:
    """`dict` without the type's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` without underscore names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no name with an underscore first: {name!r}")


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where jinja2's own filter escapes it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> str:
    raise jinja2.exceptions.TemplateError(str(message))


def _strftime_now(format: str) -> str:  # noqa: A002 (templates may name it)
    check_format(format, "%", ())
    return datetime.now().strftime(format)


class ChatEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment that chat templates are compiled and rendered in. Safe to share between threads."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
            optimized=False,  # constants would be computed while compiling, before there is a budget
        )
        self._budget: ContextVar[Budget] = ContextVar("template_budget")
        self.filters["tojson"] = _tojson
        filters = cast(dict[str, Callable[..., Any]], self.filters)
        for name, function in list(filters.items()):
            filters[name] = self._bounded(name, function)
        self.filters |= {" rounds": self._rounds, " joined": self._joined, " made": self._made}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _TemplateDict(),
            "namespace": _Namespace,
        }
        del self.globals["lipsum"]

    @contextmanager
    def budget(self, input_characters: int) -> Generator[None]:
        """What is rendered inside has one budget, which grows with the size of its input."""
        token = self._budget.set(Budget(input_characters))
        try:
            yield
        finally:
            self._budget.reset(token)

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # of the template's own arguments

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            arguments = [*args[first + 1 :], *kwargs.values()]
            check_filter(name, args[first] if len(args) > first else None, arguments)
            result = function(*args, **kwargs)
            if any(isinstance(argument, list | dict | tuple) for argument in arguments):
                count_nodes(result)
            return self._charged(result)

        return run

    def _charged(self, result: Any) -> Any:
        if isinstance(result, str | bytes):
            self._budget.get().charge(len(result))
        elif isinstance(result, list | tuple | dict):
            self._budget.get().charge(16 * len(cast(list[object], result)))
        return cast(Any, result)

    def concat(self, parts: Iterable[str]) -> str:
        """Joins what a template, a macro or a block put out; jinja2's hook."""
        budget = self._budget.get()
        texts: list[str] = []
        size = 0
        for count, text in enumerate(parts):
            size += len(text)
            check_size(size)
            texts.append(text)
            if count % 64 == 0:
                budget.tick()
        budget.charge(size)
        return "".join(texts)

    def _rounds(self, items: Iterable[object]) -> _Rounds:
        return _Rounds(items, self._budget.get())

    def _joined(self, parts: list[object]) -> Any:
        texts = [str(part) for part in parts]
        check_size(sum(map(len, texts)))
        return self._charged("".join(texts))

    def _made(self, value: object) -> object:
        count_nodes(value)
        return self._charged(value)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call in a template: in time, its arguments in bounds, its result charged."""
        self._budget.get().tick()
        check_method(obj, args, kwargs)
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, dict):
            count_nodes(cast(object, result))
        return self._charged(result)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator that can make much out of little."""
        check_operator(operator, left, right)
        return self._charged(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(jinja2.nodes.For)):
            loop.iter = _filtered(loop.iter, " rounds")
        return cast(jinja2.nodes.Template, _Instrument().visit(tree))


def _filtered(node: jinja2.nodes.Node, name: str) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(
        cast(jinja2.nodes.Expr, node),
        name,
        [],
        [],
        None,
        None,
        lineno=node.lineno,
        environment=node.environment,
    )


class _Instrument(jinja2.visitor.NodeTransformer):
    """Sends `~` and the lists and dicts that a template writes down through the environment's checks."""

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:  # noqa: N802 (jinja2 calls it)
        """`a ~ b`."""
        self.generic_visit(node)
        parts = jinja2.nodes.List(node.nodes, lineno=node.lineno, environment=node.environment)
        return _filtered(parts, " joined")

    def _visit_made(self, node: jinja2.nodes.Expr) -> jinja2.nodes.Node:
        self.generic_visit(node)
        is_target = isinstance(node, jinja2.nodes.Tuple) and node.ctx != "load"
        return node if is_target else _filtered(node, " made")

    visit_Dict = visit_List = visit_Tuple = _visit_made  # noqa: N815

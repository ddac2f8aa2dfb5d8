"""Every error that a user can meet. The message names the cause and the remedy."""

from __future__ import annotations


class OutpaceError(Exception):
    """The root of Outpace's own errors.

    `exit_code` is the command line's: 2 where the call itself is wrong, 1 where it could not be
    carried out.
    """

    exit_code = 1


class UsageError(OutpaceError):
    """The call is wrong: an option, a name, a combination."""

    exit_code = 2


class ModelNotFoundError(UsageError):
    """No model by that name, path or repository."""


class DownloadError(OutpaceError):
    """A model could not be brought: offline, refused, out of disk, wrong checksum."""


class ModelFormatError(OutpaceError):
    """A model file is damaged or lies about itself.

    Attributes: `path`, the file; `field`, the part of it that is wrong.
    """

    def __init__(self, path: object, field: str, problem: str) -> None:
        super().__init__(f"{path}: {field}: {problem}")
        self.path = str(path)
        self.field = field


class UnsupportedModelError(OutpaceError):
    """A well-formed model that Outpace cannot run: the architecture, a tensor type, a tokenizer."""


class OutOfMemoryError(OutpaceError):
    """The machine has too little memory for the model, or the KV budget for a request."""


class InvalidParameterError(UsageError):
    """A request's parameter is out of its limits.

    Attribute: `parameter`, its name, or None where the request as a whole is wrong.
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class ContextLengthError(InvalidParameterError):
    """The prompt is longer than the context. Outpace never cuts a prompt.

    Attributes: `num_tokens` of the prompt, `max_context`. `model_context`, the model's own limit, decides
    whether a larger context is a remedy. `estimated`: the tokens were not counted to the end.
    """

    def __init__(
        self, num_tokens: int, max_context: int, *, model_context: int, estimated: bool = False
    ) -> None:
        remedy = "shorten the prompt"
        if max_context < model_context:
            remedy += f" or raise --max-context (the model's own limit is {model_context})"
        counted = f"about {num_tokens}" if estimated else str(num_tokens)
        super().__init__(
            f"the prompt has {counted} tokens, but the context holds {max_context} "
            f"(one of them must be left for the answer); {remedy}",
            "messages",
        )
        self.num_tokens = num_tokens
        self.max_context = max_context


class OverloadedError(OutpaceError):
    """Too many requests wait already; try again later, in about `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BackendError(OutpaceError):
    """A step failed. The requests that it carried end with this error."""


class GrammarError(OutpaceError):
    """An answer led the parser of its grammar to a limit. The request ends with this error."""


class PortInUseError(OutpaceError):
    """The server's port is taken."""

"""What went wrong with a model, in perdure's words.

The errors of the libraries below carry the request with its key and its messages, and what the server
answered, which may echo both. So nothing of their text is passed on, and nobody may chain to them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelRequestTimeout,
    ModelTimeoutError,
    UnexpectedModelBehavior,
)

from perdure.errors import ModelError

__all__ = ["ModelFacts", "model_error", "shown_url"]

# Codes such as `context_length_exceeded`. Keys have digits, capitals or dashes in them.
_CODE = re.compile(r"[a-z]+(?:_[a-z]+){1,7}")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What error messages may say about a model.

    name     provider and model, `openai/gpt-4o`
    url      where its server is, without user, password and query; None if only the library knows
    idle     seconds of silence after which a request is given up
    retries  how often a request is repeated before its reply has begun
    """

    name: str
    provider: str
    model_id: str
    url: str | None
    idle: float
    retries: int

    @property
    def server(self) -> str:
        return f"the server at {self.url}" if self.url else "the server"


def shown_url(url: str | None) -> str | None:
    """A URL that may be shown: no user, no password, no query."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"


def model_error(error: Exception, facts: ModelFacts) -> ModelError:
    """The error for a failed request. Raise it outside of the `except` block: it must have no context."""
    status = error.status_code if isinstance(error, ModelHTTPError) else None
    text = _explain(error, facts) if status is None else _explain_status(error, status, facts)
    return ModelError(f"model {facts.name!r}: {text}", model=facts.name, status=status)


def _explain(error: Exception, facts: ModelFacts) -> str:
    if isinstance(error, (ModelTimeoutError, ModelRequestTimeout)):
        if getattr(error, "phase", None) == "connect":
            return f"cannot connect to {facts.server}: no answer. {_CHECK_SERVER}"
        return f"{facts.server} sent nothing for {facts.idle:g} s. {_TRY_AGAIN}"
    if isinstance(error, ModelConnectionError):
        if error.phase in ("connect", "pool") or (error.phase is None and not error.in_stream and _refused(error)):
            return f"cannot connect to {facts.server}. {_CHECK_SERVER}"
        return f"the connection to {facts.server} broke off before the reply was whole. {_TRY_AGAIN}"
    if isinstance(error, ModelQuotaExceededError):
        return f"the quota or credit of the account is used up{_code(error)}. Top it up or use another model."
    if isinstance(error, ModelContextWindowExceededError):
        return f"the conversation does not fit into the model's context window{_code(error)}. {_SHORTEN}"
    if isinstance(error, ModelAPIError) and (error.in_stream or error.provider_error_code):
        return f"{facts.server} reported an error in the middle of the reply{_code(error)}. {_TRY_AGAIN}"
    if isinstance(error, (ModelAPIError, UnexpectedModelBehavior, ValueError, AssertionError)):
        return (
            f"{facts.server} sent an answer that is not what its protocol says. "
            f"Check that base_url leads to an API of the kind {facts.provider!r}."
        )
    return f"the request failed in the model library ({type(error).__name__})"


def _explain_status(error: Exception, status: int, facts: ModelFacts) -> str:
    http = f"(HTTP {status}{_code(error, ', {}')})"
    if isinstance(error, ModelContextWindowExceededError) or status == 413:
        return f"the conversation does not fit into the model's context window {http}. {_SHORTEN}"
    if isinstance(error, ModelQuotaExceededError) or status == 402:
        return f"the quota or credit of the account is used up {http}. Top it up or use another model."
    if status == 401 or (status == 403 and facts.provider != "openrouter"):
        variable = f"{re.sub('[^A-Z0-9]', '_', facts.provider.upper())}_API_KEY"
        return (
            f"{facts.server} refused the api key {http}. Check api_key of provider {facts.provider!r} in the "
            f"configuration, or the environment variable that it names (often {variable})."
        )
    if status == 404:
        return (
            f"{facts.server} does not know the model {http}. Check the model id {facts.model_id!r} "
            f"and the base_url of provider {facts.provider!r}."
        )
    if status == 429:
        wait = getattr(error, "retry_after", None)
        after = f" in {wait:.0f} s" if isinstance(wait, (int, float)) and wait >= 1 else " later"
        return f"too many requests {http}{_repeated(facts)}. Try again{after}; continue_turn() goes on."
    if status in (408, 504):
        return f"{facts.server} gave up waiting for the model {http}{_repeated(facts)}. {_TRY_AGAIN}"
    if status >= 500:
        return f"{facts.server} failed {http}{_repeated(facts)}. {_TRY_AGAIN}"
    return (
        f"{facts.server} refused the request {http}. Check that the model takes what was sent: "
        "tools, images, temperature."
    )


_TRY_AGAIN = "Try again; continue_turn() goes on after the last finished step."
_CHECK_SERVER = "Check that it runs and that base_url is right."
_SHORTEN = "Start a new session, or rewind() this one."


def _repeated(facts: ModelFacts) -> str:
    return f", tried {facts.retries + 1} times" if facts.retries else ""


def _code(error: Exception, form: str = " ({})") -> str:
    """The server's own name for the error, if it is plainly a name and not something that it echoes."""
    for attribute in ("provider_error_code", "provider_error_type"):
        code = getattr(error, attribute, None)
        if isinstance(code, str) and len(code) <= 60 and _CODE.fullmatch(code):
            return form.format(code)
    return ""


def _refused(error: BaseException) -> bool:
    """Whether no connection was made: the libraries do not always tell the phase."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            break
        if isinstance(seen, ConnectionRefusedError) or type(seen).__name__ in (
            "ConnectError",
            "ConnectTimeout",
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False

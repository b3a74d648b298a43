"""A language model behind OpenAI's chat completions: OpenAI, vLLM, Ollama, llama.cpp and others."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from pipeline.config import LLM
from pipeline.errors import UserError
from pipeline.text.prompts import Messages

if TYPE_CHECKING:
    import openai

HIDDEN = "[key]"
MAX_MESSAGE = 300  # letters of a server's own words in an error


class NoAnswer(UserError):
    """The server gave no answer to one question; another question may fare better."""


class BadBody(Exception):
    """The server's reply is not a chat completion (cut off, or something else)."""


@dataclass(frozen=True)
class Usage:
    """Tokens of questions and answers."""

    input: int = 0
    output: int = 0
    calls: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.input + other.input, self.output + other.output, self.calls + other.calls)

    def cost(self, price: dict[str, float]) -> float | None:
        """In the currency of `price` (of a million tokens); None where it is not given."""
        if not price:
            return None
        return (self.input * price.get("input", 0.0) + self.output * price.get("output", 0.0)) / 1e6

    def line(self, price: dict[str, float]) -> str:
        """For people."""
        cost = self.cost(price)
        said = "cost unknown: llm.price is not set" if cost is None else f"cost {cost:.4f}"
        return f"{self.input} tokens in, {self.output} tokens out, {said}"


class Chat:
    """The server of `settings`; safe to use from several threads.

    The key comes from the environment. It is shown to the server only: whatever a server says is searched for it.
    Raises UserError when model or key are missing.
    """

    def __init__(self, settings: LLM) -> None:
        import openai  # takes half a second, and every training loads this module

        if not settings.model:
            raise UserError("no language model is named; set llm.model (config.yaml), describe.model or --model")
        base = settings.base_url or os.environ.get("OPENAI_BASE_URL", "")
        self._key = os.environ.get(settings.key, "").strip()
        if not self._key and not base:
            raise UserError(f"the environment variable {settings.key} is not set; put the LLM's key there")
        self.settings = settings
        self.client = openai.OpenAI(
            api_key=self._key or "none",  # a server of one's own may need none
            base_url=base or None,
            timeout=settings.timeout,
            max_retries=settings.retries,  # with back-off; waits as long as Retry-After says, up to two minutes
        )
        self.address = public(str(self.client.base_url))
        known = set(inspect.signature(self.client.chat.completions.create).parameters)
        self._given = {key: value for key, value in settings.parameters.items() if key in known}
        self._extra = {key: value for key, value in settings.parameters.items() if key not in known}

    def ask(self, messages: Messages, schema: dict[str, Any], name: str) -> tuple[str, bool, Usage]:
        """The answer to a conversation, whether it was cut off by the token limit, and what it took.

        Raises NoAnswer when this question gets none within the retries, BadBody for a reply that cannot be read, and
        UserError when no question would get an answer: wrong key or model, no server.
        """
        import openai

        answer_format = {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}
        try:
            reply = self.client.chat.completions.create(
                model=self.settings.model,
                messages=messages,  # type: ignore[arg-type]
                response_format=answer_format,  # type: ignore[arg-type]
                extra_body=self._extra or None,
                **self._given,
            )
            choice, usage = reply.choices[0], reply.usage
            text = choice.message.content or getattr(choice.message, "refusal", None) or ""
        except openai.APIResponseValidationError:
            raise BadBody from None
        except openai.OpenAIError as error:
            raise self._explain(error) from None
        except (ValueError, TypeError, AttributeError, IndexError):
            raise BadBody from None
        used = Usage(usage.prompt_tokens or 0, usage.completion_tokens or 0, 1) if usage else Usage(calls=1)
        return self.clean(text), choice.finish_reason == "length", used

    def clean(self, text: str) -> str:
        """`text` without the key."""
        return text.replace(self._key, HIDDEN) if len(self._key) > 3 else text

    def _explain(self, error: openai.OpenAIError) -> UserError:
        import openai

        said = " ".join(self.clean(str(error)).split())
        said = said if len(said) <= MAX_MESSAGE else said[:MAX_MESSAGE] + " ..."
        where, settings = self.address, self.settings
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return UserError(f"{where} refuses the key in the environment variable {settings.key}; correct it ({said})")
        if isinstance(error, openai.NotFoundError):
            return UserError(f"{where} has no model {settings.model!r}, or base_url does not end at /v1 ({said})")
        if isinstance(error, openai.APITimeoutError):
            tries = f"{settings.retries + 1} attempts of {settings.timeout:g} s"
            return NoAnswer(f"{where} gave no answer in {tries}; raise llm.timeout or run again later")
        if isinstance(error, openai.APIConnectionError):
            cause = " ".join(self.clean(str(error.__cause__ or error)).split())
            return UserError(f"{where} cannot be reached ({cause}); start the server, or correct base_url")
        if isinstance(error, openai.RateLimitError):
            return NoAnswer(f"{where} asks to slow down; lower llm.concurrency or run again later ({said})")
        if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
            return NoAnswer(f"{where} refuses the question; check llm.model and llm.parameters ({said})")
        return NoAnswer(f"{where} fails; run again later ({said})")


def public(url: str) -> str:
    """An address without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))

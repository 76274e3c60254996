"""Ask any OpenAI-compatible endpoint, politely and stubbornly: bounded concurrency, each request retried by itself."""

from __future__ import annotations

import asyncio
import copy
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import aiohttp

from pipeline.errors import InputError
from pipeline.rows.sample import Message
from pipeline.teacher.answer import Answer, error_message, read_answer, request_body, request_key
from pipeline.teacher.errors import BudgetError, PassingError, TeacherError
from pipeline.teacher.ledger import Ledger
from pipeline.teacher.pace import Outcome, Pace
from pipeline.text.tokens import estimate_tokens

TRANSPORT_TRIES = 9
"""With waits of 0.5, 1, 2 … 16, 20, 20 s, each shortened by up to a half, a server may be gone for 35 s at least."""
FIRST_CONTACT_TRIES = 3
"""As long as the endpoint never answered anything, a wrong address is likelier than an outage."""
LONGEST_WAIT_S = 20.0
LONGEST_RETRY_AFTER_S = 120.0
MAX_RESPONSE_BYTES = 8 * 2**20


@dataclass
class Usage:
    """Counters of one run; they are reported and never written into rows."""

    requests: int = 0
    """Sent to the endpoint, retries included."""
    retries: int = 0
    cached: int = 0
    """Answered from the ledger."""
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Estimated, as `prompt_tokens`, where the endpoint reports none."""
    cost: float = 0.0
    """Of the answers that this run asked for, at the recipe's prices."""


@dataclass
class _Spent:
    """By all who share a client."""

    cost: float


class TeacherClient:
    """One teacher. Use it as an async context manager; `open_teacher` builds it from a recipe.

    An answer comes from the ledger or, once, from the endpoint, and is on the disk before it is returned. At most
    `max_concurrency` requests are under way, over all addresses, fewer where the servers refuse some (`Pace`); one that waits
    to be sent again holds no slot. Once the answers of the ledger cost `budget`, at `prices` per million tokens of prompt and
    completion, nothing more is asked. `small` says that the model needs prompts by example.
    """

    def __init__(
        self,
        *,
        name: str,
        base_urls: Sequence[str],
        model: str,
        ledger: Ledger,
        api_key: str | None = None,
        parameters: Mapping[str, Any],
        max_tokens: int = 512,
        max_concurrency: int = 16,
        timeout_s: float = 120.0,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        prices: tuple[float, float] = (0.0, 0.0),
        budget: float | None = None,
        first_wait_s: float = 0.5,
        small: bool = False,
    ) -> None:
        self.name = name
        self.base_urls = tuple(url.rstrip("/") for url in base_urls)
        self.model = model
        self.small = small
        self.max_tokens = max_tokens
        self.max_concurrency = max_concurrency
        self.usage = Usage()
        self._ledger = ledger
        self._api_key = api_key
        self._parameters = dict(parameters)
        self._timeout_s = timeout_s
        self._first_wait_s = first_wait_s
        self._pace = Pace(
            self.base_urls,
            max_concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            refused_rest_s=first_wait_s,
        )
        self._counts_tokens = tokens_per_minute is not None
        self._prices, self._budget = prices, budget
        self._spent = _Spent(self._cost(*ledger.tokens()) if budget is not None else 0.0)
        self._session: aiohttp.ClientSession | None = None
        self._silent = set(self.base_urls)  # of which no request was answered
        self._failing: set[str] = set()  # of those, the ones that a request was lost at

    def __repr__(self) -> str:
        return f"TeacherClient(name={self.name!r}, base_urls={self.base_urls!r}, model={self.model!r})"

    async def __aenter__(self) -> Self:
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.max_concurrency),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            headers=headers,
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()

    def sharing(self) -> TeacherClient:
        """This client for one more who asks: everything is shared but the usage."""
        twin = copy.copy(self)
        twin.usage = Usage()
        return twin

    async def ask(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Answer:
        """The answer; one that was cut off is asked for again with twice the limit, once. `parameters` join the client's.

        Raises TeacherError when this request cannot be answered, InputError when the endpoint never answered at all.
        """
        limit = max_tokens or self.max_tokens
        sampling = {**self._parameters, **(parameters or {})}
        answer = await self._ask_within(messages, limit, sampling)
        if answer.finish_reason == "length":
            answer = await self._ask_within(messages, 2 * limit, sampling)
        return answer

    async def _ask_within(self, messages: Sequence[Message], max_tokens: int, sampling: Mapping[str, Any]) -> Answer:
        key = request_key(self.model, messages, sampling)
        if (kept := self._ledger.find(key, max_tokens)) is not None:
            self.usage.cached += 1
            return kept
        tokens = sum(estimate_tokens(m.content) for m in messages) + max_tokens if self._counts_tokens else 0
        answer = await self._ask_stubbornly(key, request_body(self.model, messages, sampling, max_tokens), tokens)
        if not answer.prompt_tokens + answer.completion_tokens:
            prompt = sum(estimate_tokens(m.content) for m in messages)
            answer = replace(answer, prompt_tokens=prompt, completion_tokens=estimate_tokens(answer.text))
        self._pay(answer.prompt_tokens, answer.completion_tokens)
        return await self._ledger.keep(answer, max_tokens)

    def _pay(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.usage.prompt_tokens += prompt_tokens
        self.usage.completion_tokens += completion_tokens
        self.usage.cost += (cost := self._cost(prompt_tokens, completion_tokens))
        self._spent.cost += cost

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self._prices[0] + completion_tokens * self._prices[1]) / 1e6

    async def _ask_stubbornly(self, key: str, body: bytes, tokens: int) -> Answer:
        met: Counter[int] = Counter()  # faults, by how many of their kind are too many
        while True:
            self._check_budget()
            slot = await self._pace.take(tokens)
            outcome: Outcome | None = None
            left = 0
            try:
                self._check_budget()  # what was bought while this one waited
                self.usage.requests += 1
                answer = await self._attempt(slot.address.url, key, body)
                outcome, left = (
                    "answered",
                    max(0, tokens - used) if (used := answer.prompt_tokens + answer.completion_tokens) else 0,
                )
                return answer
            except PassingError as fault:
                outcome = fault.outcome
                if any(fault.tokens):
                    self._pay(*fault.tokens)
                    await self._ledger.discard(*fault.tokens)
                met[fault.tries] += 1
                tried = met.total()
                if met[fault.tries] >= fault.tries or (self._nobody_answers() and tried >= FIRST_CONTACT_TRIES):
                    raise self._give_up(fault, tried) from None
                wait_s = max(self._backoff_s(tried), fault.wait_s)
            except TeacherError:
                outcome = "answered"
                raise
            finally:
                self._pace.give_back(slot, outcome, tokens_left=left)
            self.usage.retries += 1
            await asyncio.sleep(wait_s)

    def _check_budget(self) -> None:
        if self._budget is not None and self._spent.cost >= self._budget:
            raise BudgetError(
                f"teacher {self.name!r}: the budget of {self._budget:g} is spent; the answers are kept: raise teachers.{self.name}."
                "budget and run again, and it goes on from here"
            )

    async def _attempt(self, base_url: str, key: str, body: bytes) -> Answer:
        assert self._session is not None, "TeacherClient is used inside `async with`"
        try:
            async with self._session.post(f"{base_url}/chat/completions", data=body, allow_redirects=False) as response:
                self._silent.discard(base_url)
                content = await _read(response)
        except TimeoutError:
            self._failing.add(base_url)
            raise PassingError(f"no answer within {self._timeout_s:g} s", tries=TRANSPORT_TRIES, outcome="refused") from None
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            self._failing.add(base_url)
            if self._nobody_answers():
                raise self._unreachable(str(error)) from None
            raise PassingError(f"no connection: {_cause(error)}", tries=TRANSPORT_TRIES, outcome="broken") from None
        except (aiohttp.ClientError, OSError) as error:
            self._failing.add(base_url)
            message = f"connection lost: {error}" if str(error) else "connection lost"
            raise PassingError(self._safe(message), tries=TRANSPORT_TRIES, outcome="broken") from None
        if response.status == 200:
            return read_answer(content, key, redact=self._safe)
        raise self._refusal(response, content)

    def _refusal(self, response: aiohttp.ClientResponse, content: bytes) -> Exception:
        status = response.status
        if 300 <= status < 400:
            target = response.headers.get("Location", "another address")
            return self._error(f"redirects to {target}; name that address as base_url", status)
        if status in (408, 409, 425, 429) or status >= 500:
            wait_s = _retry_after_s(response.headers.get("Retry-After"))
            message = f"status {status}: {error_message(content, redact=self._safe)}"
            outcome: Outcome = "refused" if status in (429, 503) else "broken" if status >= 500 else "answered"
            return PassingError(message, status=status, tries=TRANSPORT_TRIES, wait_s=wait_s, outcome=outcome)
        if status in (401, 403, 404) and len(self.base_urls) > 1:  # it may be this address that is wrong
            message = f"status {status}: {error_message(content, redact=self._safe)}"
            return PassingError(message, status=status, tries=TRANSPORT_TRIES, outcome="broken")
        hint = " (a base_url usually ends in /v1)" if status == 404 else ""
        return self._error(f"status {status}: {error_message(content, redact=self._safe)}{hint}", status)

    def _give_up(self, fault: PassingError, tried: int) -> Exception:
        if self._nobody_answers():
            return self._unreachable(str(fault))
        return self._error(f"{fault} ({tried} tries)", fault.status)

    def _error(self, message: str, status: int) -> TeacherError:
        self.usage.failed += 1
        return TeacherError(f"teacher {self.name!r}: {self._safe(message)}", status=status)

    def _nobody_answers(self) -> bool:
        """No address ever did, and a request was lost at each."""
        return self._silent == self._failing == set(self.base_urls)

    def _unreachable(self, message: str) -> InputError:
        where, why = ", ".join(self.base_urls), self._safe(message)
        return InputError(f"teacher {self.name!r} at {where} does not answer: {why}; is the server running?")

    def _safe(self, message: str) -> str:
        return message.replace(self._api_key, "***") if self._api_key else message

    def _backoff_s(self, tried: int) -> float:
        """Exponential with jitter: requests that failed together do not come back together."""
        return min(LONGEST_WAIT_S, self._first_wait_s * 2.0 ** (tried - 1)) * random.uniform(0.5, 1.0)


def _cause(error: Exception) -> str:
    """What went wrong without the address, which is no part of a row's reason."""
    cause = getattr(error, "os_error", None)
    if cause is None:
        return "the address cannot be used"
    return os.strerror(cause.errno) if (cause.errno or 0) > 0 else cause.strerror or type(cause).__name__


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_RESPONSE_BYTES:
            response.close()
            raise PassingError(f"an answer of more than {MAX_RESPONSE_BYTES >> 20} MiB", status=response.status, tries=2)
    return b"".join(parts)


def _retry_after_s(value: str | None) -> float:
    """Seconds that `Retry-After` (a number or an HTTP date) asks for, at most two minutes; 0 when absent or unreadable."""
    if value is None:
        return 0.0
    try:
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_S)

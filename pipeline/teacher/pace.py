"""How fast a teacher may be asked: as many requests at once as its servers bear, and no more a minute than it allows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

FIRST_AT_ONCE = 64
"""Of an address that was not asked before; doubled with every round of answers until one is refused."""
LONGEST_REST_S = 30.0
_FEWEST = 100  # answers in a round, however few are asked at once: of fewer, chance made one in ten look like one in five
_TOO_MANY = 0.2  # share of a round that is refused, beyond which the server is asked for less
_STEP = 16  # near the limit at which it refused, a round adds a sixteenth
_DEAD = 5  # failures in a row, beyond which an address rests: of chance failures, one in five, that is one in 3,000

Outcome = Literal["answered", "refused", "broken"]
"""An answer, or an error that is the request's own; 429, 503 or no answer in time; no connection, or an error of the server's."""


@dataclass
class Address:
    """One endpoint: how much it is asked at once, and how it took that."""

    url: str
    ceiling: int
    limit: float
    under_way: int = 0
    _refused_at: float | None = None
    """The limit at which it last began to refuse."""
    _cuts: int = 0
    _seen: int = 0
    _refused: int = 0
    _growing: bool = True
    _broken_in_a_row: int = 0
    _rests: int = 0
    _rests_until: float = 0.0

    def room(self) -> int:
        """How many more it may be asked; one at a time while nobody knows whether it is back."""
        return (1 if self._rests else int(self.limit)) - self.under_way

    def rest_s(self, now: float) -> float:
        return max(0.0, self._rests_until - now)

    def learn(self, outcome: Outcome, cuts_before: int, now: float, *, may_rest: bool) -> None:
        if outcome != "broken":
            self._broken_in_a_row = self._rests = 0
            self._rests_until = 0.0
        elif may_rest:
            self._broken_in_a_row += 1
            # Requests that break in one instant, or were sent before the rest, tell of one fault.
            if self._broken_in_a_row >= _DEAD and now >= self._rests_until:
                self._rests += 1
                self._rests_until = now + min(LONGEST_REST_S, 0.5 * 2.0 ** min(self._rests - 1, 10))
        if cuts_before != self._cuts:  # it was sent when more was asked, and tells of that
            return
        self._seen += 1
        self._refused += outcome == "refused"
        size = max(_FEWEST, int(self.limit))
        if self._recovers() and not self._refused:
            size = int(self.limit)
        if self._seen >= size or self._refused > _TOO_MANY * size:
            self._adapt(self._refused / self._seen)

    def _recovers(self) -> bool:
        """Whether it is asked for far less than it once bore: an outage, not its limit, brought it down."""
        return self._refused_at is not None and 2 * self.limit < self._refused_at

    def _adapt(self, refused: float) -> None:
        self._seen = self._refused = 0
        if refused > _TOO_MANY:
            self._cuts += 1
            self._refused_at = self.limit if self._growing else self._refused_at
            self.limit = max(1.0, self.limit * max(0.5, 1 - refused))
        elif self._refused_at is None or self._recovers():
            self.limit = min(self.ceiling, 2 * self.limit)
        else:
            self.limit = min(self.ceiling, self.limit + max(1.0, self.limit / _STEP))
        self._growing = refused <= _TOO_MANY


@dataclass(frozen=True)
class Slot:
    """Leave to ask `address` once."""

    address: Address
    cuts_before: int


class Pace:
    """Slots at one or several addresses, first come, first served, spread over those that answer.

    Each address begins with `FIRST_AT_ONCE` requests under way and goes up to its share of `max_concurrency` while it answers;
    where it refuses more than a fifth of a round it is asked for less. Of several, one that fails `_DEAD` times in a row rests,
    and is then asked once. A refused request's slot rests for `refused_rest_s`: without that, what is one too many makes a
    storm of refusals. Rates are kept by spacing requests evenly.
    """

    def __init__(
        self,
        urls: Sequence[str],
        max_concurrency: int,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        refused_rest_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        shares = [max_concurrency // len(urls) + (number < max_concurrency % len(urls)) for number in range(len(urls))]
        self.addresses = [Address(url, share, min(share, FIRST_AT_ONCE)) for url, share in zip(urls, shares, strict=True) if share]
        self._clock, self._refused_rest_s = clock, refused_rest_s
        self._waiting: deque[asyncio.Future[Slot]] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        self._seconds_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._next_token = 0.0

    async def take(self, tokens: int) -> Slot:
        """Wait for a slot, and then for the rates; `tokens` is what the request will take at the most."""
        place: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._serve()
        try:
            slot = await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._free(place.result())
            raise
        now = self._clock()
        start = max(now, self._next_request, self._next_token)
        self._next_request = start + self._seconds_per_request
        self._next_token = start + tokens * self._seconds_per_token
        try:
            if start > now:
                await asyncio.sleep(start - now)
        except asyncio.CancelledError:
            self._free(slot)
            raise
        return slot

    def give_back(self, slot: Slot, outcome: Outcome | None, *, tokens_left: int = 0) -> None:
        """The request is over; without an outcome it was broken off. `tokens_left` are those that it did not take after all."""
        self._next_token -= tokens_left * self._seconds_per_token
        if outcome is not None:
            slot.address.learn(outcome, slot.cuts_before, self._clock(), may_rest=len(self.addresses) > 1)
        if outcome == "refused":
            asyncio.get_running_loop().call_later(self._refused_rest_s, self._free, slot)
        else:
            self._free(slot)

    def _free(self, slot: Slot) -> None:
        slot.address.under_way -= 1
        self._serve()

    def _serve(self) -> None:
        """Hand out what is free to those who wait."""
        while self._waiting:
            if self._waiting[0].done():  # cancelled
                self._waiting.popleft()
                continue
            free = [address for address in self.addresses if address.room() > 0]
            if not free:
                return
            now = self._clock()
            address = max((address for address in free if not address.rest_s(now)), key=Address.room, default=None)
            if address is None:
                self._wake_in(min(address.rest_s(now) for address in free))
                return
            address.under_way += 1
            self._waiting.popleft().set_result(Slot(address, address._cuts))

    def _wake_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._alarm is not None and self._alarm.when() <= loop.time() + seconds:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = loop.call_later(seconds, self._wake)

    def _wake(self) -> None:
        self._alarm = None
        self._serve()

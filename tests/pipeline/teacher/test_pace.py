"""How many requests are under way: as many as the server bears, whatever it answers, and none is forgotten."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.teacher.pace import FIRST_AT_ONCE, Outcome, Pace, Slot

Server = Callable[[int], Outcome]
"""What it says to a request when so many are under way."""


def drive(pace: Pace, servers: dict[str, Server], requests: int, *, retry: bool = True) -> Counter[tuple[str, Outcome]]:
    """Ask so many requests, each until it is answered; a step of the loop is the time of an answer."""
    said: Counter[tuple[str, Outcome]] = Counter()

    async def ask() -> None:
        while True:
            slot = await pace.take(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            outcome = servers[slot.address.url](slot.address.under_way)
            said[slot.address.url, outcome] += 1
            pace.give_back(slot, outcome)
            if outcome == "answered" or not retry:
                return

    async def run() -> None:
        await asyncio.gather(*(ask() for _ in range(requests)))
        await asyncio.sleep(0.01)  # refused slots rest

    asyncio.run(run())
    assert all(address.under_way == 0 for address in pace.addresses)
    return said


def test_it_begins_carefully_and_reaches_the_ceiling_where_all_is_answered():
    pace = Pace(["a"], 256, refused_rest_s=0.001)
    assert pace.addresses[0].limit == FIRST_AT_ONCE
    drive(pace, {"a": lambda _: "answered"}, 1_000)
    assert pace.addresses[0].limit == 256


def test_a_refusal_now_and_then_throttles_nothing():
    draw = random.Random(0)
    pace = Pace(["a"], 256, refused_rest_s=0.001)
    said = drive(pace, {"a": lambda _: "refused" if draw.random() < 0.1 else "answered"}, 5_000)
    assert said["a", "refused"] > 400 and pace.addresses[0].limit == 256


@pytest.mark.parametrize("bears", [1, 16, 100])
def test_a_server_that_refuses_what_is_too_much_is_asked_for_what_it_bears(bears):
    pace = Pace(["a"], 256, refused_rest_s=0.001)
    said = drive(pace, {"a": lambda under_way: "refused" if under_way > bears else "answered"}, 5_000)
    assert bears / 2 <= pace.addresses[0].limit <= 2 * bears + 1
    assert said["a", "refused"] < said["a", "answered"]


def test_what_a_server_bears_may_grow_again():
    bears = 8
    pace = Pace(["a"], 64, refused_rest_s=0.001)
    servers: dict[str, Server] = {"a": lambda under_way: "refused" if under_way > bears else "answered"}
    drive(pace, servers, 1_000)
    assert pace.addresses[0].limit < 20
    bears = 1_000
    drive(pace, servers, 6_000)
    assert pace.addresses[0].limit == 64


def test_several_addresses_are_loaded_alike():
    said = drive(Pace(["a", "b", "c"], 12), dict.fromkeys("abc", lambda _: "answered"), 600)
    assert max(said.values()) - min(said.values()) <= 12


def test_one_that_is_lost_rests_while_the_others_work():
    pace = Pace(["a", "b"], 8)
    said = drive(pace, {"a": lambda _: "broken", "b": lambda _: "answered"}, 500)
    assert said["b", "answered"] == 500 and said["a", "broken"] <= 8


def test_a_thousand_failures_of_one_address_are_no_error():
    now = 0.0
    pace = Pace(["a", "b"], 8, clock=lambda: now)
    for _ in range(2_000):
        now += 31
        pace.addresses[0].learn("broken", 0, now, may_rest=True)
    assert pace.addresses[0].rest_s(now) == 30


def test_failures_of_one_instant_are_one_and_an_answer_ends_the_rest():
    pace = Pace(["a", "b"], 64)
    address = pace.addresses[0]
    for _ in range(30):
        address.learn("broken", 0, 0.0, may_rest=True)
    assert address.rest_s(0.0) == 0.5
    assert address.room() == 1  # whether it is back is asked once
    address.learn("answered", 0, 0.1, may_rest=True)
    assert address.rest_s(0.1) == 0 and address.room() == 32


def test_chance_failures_of_one_address_leave_it_at_work():
    draw = random.Random(1)
    pace = Pace(["a", "b"], 64)
    said = drive(pace, {"a": lambda _: "broken" if draw.random() < 0.2 else "answered", "b": lambda _: "answered"}, 5_000)
    assert said["a", "answered"] > 1_800


def test_whoever_waits_gets_the_rested_address_while_the_other_is_busy():
    async def run() -> str:
        pace = Pace(["a", "b"], 2)
        busy, lost = sorted([await pace.take(0), await pace.take(0)], key=lambda slot: slot.address.url, reverse=True)
        for _ in range(4):
            lost.address.learn("broken", 0, time.monotonic(), may_rest=True)
        pace.give_back(lost, "broken")
        slot = await asyncio.wait_for(pace.take(0), 3)
        assert busy.address.url == "b"
        return slot.address.url

    assert asyncio.run(run()) == "a"


def test_after_an_outage_half_of_the_old_pace_is_back_at_once():
    pace = Pace(["a"], 64, refused_rest_s=0.001)
    address = pace.addresses[0]
    for _ in range(300):
        address.learn("refused", address._cuts, 0.0, may_rest=False)
    assert address.limit == 1
    answers = 0
    while address.limit < 32 and answers < 10_000:
        address.learn("answered", address._cuts, 0.0, may_rest=False)
        answers += 1
    assert answers < 200  # a round that still saw refusals, then doublings


def test_where_all_are_lost_the_first_to_have_rested_is_asked_again():
    now = 0.0
    pace = Pace(["a", "b"], 2, clock=lambda: now)

    async def run() -> str:
        nonlocal now
        slots = [await pace.take(0) for _ in range(2)]
        for slot in slots:
            for _ in range(4):
                slot.address.learn("broken", 0, now, may_rest=True)
            pace.give_back(slot, "broken")
            now += 0.2
        waiting = asyncio.create_task(pace.take(0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        now = 0.55
        return (await asyncio.wait_for(waiting, 2)).address.url

    assert asyncio.run(run()) == "a"


def test_rates_are_kept_by_even_spacing():
    async def seconds(tokens: int, **rates: int) -> float:
        pace = Pace(["a"], 100, **rates)
        began = time.monotonic()
        slots = await asyncio.gather(*(pace.take(tokens) for _ in range(11)))
        for slot in slots:
            pace.give_back(slot, "answered")
        return time.monotonic() - began

    assert asyncio.run(seconds(0)) < 0.05
    assert 0.2 <= asyncio.run(seconds(0, requests_per_minute=3_000)) < 0.35
    assert 0.2 <= asyncio.run(seconds(10, tokens_per_minute=30_000)) < 0.35


def test_tokens_that_were_not_taken_are_free_again():
    async def seconds(left: int) -> float:
        pace = Pace(["a"], 1, tokens_per_minute=60_000)
        began = time.monotonic()
        for _ in range(3):
            pace.give_back(await pace.take(100), "answered", tokens_left=left)
        return time.monotonic() - began

    assert asyncio.run(seconds(0)) >= 0.2 > asyncio.run(seconds(99))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_whoever_is_cancelled_wherever_no_slot_is_lost_and_the_first_come_is_served_first(lives):
    pace = Pace(["a", "b"], 3)
    served: list[int] = []

    async def use(number: int, holds: int) -> None:
        slot: Slot = await pace.take(0)
        served.append(number)
        try:
            for _ in range(holds):
                await asyncio.sleep(0)
        finally:
            pace.give_back(slot, None)

    async def run() -> None:
        tasks = [asyncio.create_task(use(number, holds)) for number, (holds, _) in enumerate(lives)]
        for step in range(4):
            await asyncio.sleep(0)
            for task, (_, cancelled_at) in zip(tasks, lives, strict=True):
                if cancelled_at == step:
                    task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(asyncio.gather(*(pace.take(0) for _ in range(3))), 1)

    asyncio.run(run())
    assert served == sorted(served)
    assert sum(address.under_way for address in pace.addresses) == 3

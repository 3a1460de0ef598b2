"""An asynchronous test suite for a graph: doubles for its units, order and states asserted.

    python -m pytest examples/async_test_suite.py

The graph under test is a shop's order desk; in a project of yours it would be imported.
"""

import asyncio
import subprocess
import sys

import pytest

from quantum_async import ExecutionError, QuantumPartitioner, UnitState
from quantum_async.core.events import UnitCompleted, UnitStarted

# -- the code under test ---------------------------------------------------------------------------


class CardDeclinedError(Exception):
    pass


async def ask_bank(order):
    raise ConnectionError("no test calls the real bank")


def order_desk(bank=ask_bank):
    desk = QuantumPartitioner()

    @desk.unit
    async def stock(order):
        await asyncio.sleep(0.01)
        return {"on shelf": order["pieces"] <= 10}

    desk.unit(bank, name="payment", retries=1)

    @desk.unit
    async def parcel(order, stock, payment):
        return f"{order['pieces']} pieces, paid by {payment}"

    @desk.unit
    async def letter(parcel):
        return f"Dear customer: {parcel}."

    return desk


# -- its tests -------------------------------------------------------------------------------------

pytestmark = pytest.mark.asyncio

ORDER = {"order": {"pieces": 3}}


@pytest.fixture
def desk():
    return order_desk()


@pytest.fixture
def events(desk):
    """What happens in the desk's runs, in order: ("start" or "end", unit)."""
    seen = []

    def note(event):
        if isinstance(event, UnitStarted):
            seen.append(("start", event.unit))
        elif isinstance(event, UnitCompleted):
            seen.append(("end", event.unit))

    desk.observers.append(note)
    return seen


def double(*replies):
    """A bank that gives or raises one reply a call."""
    left = iter(replies)

    async def bank(order):
        reply = next(left)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return bank


async def test_a_unit_alone_is_a_plain_function(desk):
    parcel = desk.units["parcel"]
    assert await parcel({"pieces": 2}, {"on shelf": True}, "card") == "2 pieces, paid by card"


async def test_an_override_stands_in_for_a_unit(desk):
    result = await desk.run(ORDER, overrides={"payment": "a test card"})
    assert result["letter"] == "Dear customer: 3 pieces, paid by a test card."
    assert result.units["payment"].attempts == 0


async def test_only_what_a_target_needs_is_run(desk):
    result = await desk.run(ORDER, targets="stock")
    assert dict(result) == {"stock": {"on shelf": True}}


async def test_the_letter_is_written_last(desk, events):
    await desk.run(ORDER, overrides={"payment": "card"})
    assert events.index(("end", "stock")) < events.index(("start", "parcel"))
    assert events[-2:] == [("start", "letter"), ("end", "letter")]


async def test_stock_and_payment_do_not_wait_for_each_other(desk):
    plan = desk.build_execution_plan()
    hours = {"stock": 2, "payment": 2, "parcel": 1, "letter": 1}
    assert plan.simulate(hours).makespan == 4


async def test_the_bank_is_asked_again():
    result = await order_desk(double(ConnectionError("busy"), "card")).run(ORDER)
    assert result.ok
    assert result.units["payment"].attempts == 2


async def test_nothing_is_sent_unpaid():
    desk = order_desk(double(ConnectionError("busy"), CardDeclinedError("no cover")))
    with pytest.raises(ExecutionError) as caught:
        await desk.run(ORDER)
    assert isinstance(caught.value.__cause__, CardDeclinedError)
    assert caught.value.result.states == {
        "stock": UnitState.COMPLETED,
        "payment": UnitState.FAILED,
        "parcel": UnitState.SKIPPED,
        "letter": UnitState.SKIPPED,
    }


async def test_orders_at_once_do_not_mix(desk):
    orders = ({"order": {"pieces": pieces}} for pieces in (1, 2))
    one, two = await asyncio.gather(
        *(desk.run(order, overrides={"payment": "card"}) for order in orders)
    )
    assert (one["parcel"], two["parcel"]) == ("1 pieces, paid by card", "2 pieces, paid by card")


def main():
    # In a process of its own: pytest rewrites modules before they are imported.
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", "--verbose", __file__]))


if __name__ == "__main__":
    main()

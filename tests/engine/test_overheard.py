"""What a call prints and logs in a worker of a cluster."""

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from quantum_async.engine.executors.overheard import Records, overheard
from quantum_async.engine.executors.performing import pickled_within
from tests.support.faraway import unheard

ALL = json.dumps({"stdout": True, "stderr": True, "levels": {"": 30, "quiet": 10}})
NONE = json.dumps({"stdout": False, "stderr": False})


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    with unheard():
        yield
    logging.getLogger("quiet").setLevel(logging.NOTSET)


def test_lines_and_log_records_are_kept_in_order() -> None:
    with overheard(ALL) as records:
        sys.stdout.write("one\ntw")
        sys.stdout.write("o\n10 %\r20 %\n\nlast")
        sys.stderr.write("wrong\n")
        logging.getLogger("quiet").debug("said %d", 3, extra={"size": 5, "odd": {1}})
        try:
            raise ValueError("no")
        except ValueError:
            logging.getLogger("quiet").exception("failed")
    kept = [(it.kind, it.message) for it in records.kept]
    assert kept == [
        ("stdout", "one"),
        ("stdout", "two"),
        ("stdout", "20 %"),
        ("stderr", "wrong"),
        ("logging", "said 3"),
        ("logging", "failed"),
        ("stdout", "last"),
    ]
    assert records.kept[4].fields == {"size": 5, "odd": "{1}"}
    assert "ValueError: no" in records.kept[5].exception


def test_what_is_not_wanted_and_what_is_of_nobody_goes_where_it_always_went(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with overheard(NONE) as records:
        sys.stdout.write("shown\n")
        sys.stdout.flush()
        assert sys.stdout.writable()
        assert not sys.stdout.isatty()
        assert sys.stdout.encoding
    assert records.kept == []
    with overheard(ALL):
        pass
    sys.stdout.write("of nobody\n")
    logging.getLogger("quiet").warning("of nobody")
    assert capsys.readouterr().out == "shown\nof nobody\n"


def test_there_is_a_limit() -> None:
    records = Records({"stdout": True})
    for number in range(1_100):
        records.write("stdout", f"{number}\n")
    records.close()
    assert len(records.kept) == 1_001
    assert records.kept[-1].kind == "dropped"
    assert records.kept[-1].fields == {"bytes": 400}


LONG = b"1" * 900


@pytest.mark.parametrize(
    ("value", "fits"),
    [(1, True), (LONG, False), (lambda: 1, True), (lambda x=LONG: x, False)],
)
def test_a_value_is_pickled_within_a_limit(value: Any, fits: bool) -> None:
    assert bool(pickled_within(value, 800)) is fits

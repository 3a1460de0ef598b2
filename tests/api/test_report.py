"""The report of a run: one page that needs nothing, tells everything, and runs nothing foreign."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from quantum_async import QuantumPartitioner, RunResult
from quantum_async.report import page, page_data, run_state, short_repr
from tests.support.browser import needs_chromium, opened

NASTY = "</script><img src=x onerror=\"document.title='owned'\">'\\\x1b[31m\u202e\ud800\u2028&amp;"


@pytest.fixture
def flow() -> QuantumPartitioner[Any, Any]:
    """a → bad → lost; a → weak, with a fallback; again, which needs two attempts."""
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner(failure_policy="collect")
    tries = iter([OSError("once"), None])

    @flow.unit
    async def a():
        return [1, 2, 3]

    @flow.unit
    def bad(a):
        raise ValueError(f"it says {NASTY}\nand more")

    @flow.unit
    async def lost(bad): ...

    @flow.unit(fallback="instead")
    async def weak(a):
        raise OSError("weak")

    @flow.unit(retries=1)
    async def again():
        if error := next(tries):
            raise error

    flow.map(lambda item: item * 2, over="a", name="each")
    flow.add_unit(lambda ctx: NASTY, name=NASTY)
    return flow


def data_in(text: str) -> dict[str, Any]:
    """Read the data of a page back as a browser does."""
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script', text, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


async def test_the_page_has_every_unit_with_its_story(flow):
    result = await flow.run()
    data = data_in(page(result))
    units = {unit["name"]: unit for unit in data["units"]}
    assert list(units)[:2] == ["a", "bad"] or set(units) >= {"a", "bad", "lost", "weak", "again"}
    assert units["a"]["value"] == "[1, 2, 3]"
    assert units["bad"]["state"] == "failed"
    assert units["bad"]["error"]["type"] == "ValueError"
    assert "test_report.py" in units["bad"]["error"]["traceback"]
    assert "engine" not in units["bad"]["error"]["traceback"]
    assert units["lost"]["cause"] == "'bad' failed"
    assert [data["units"][n]["name"] for n in units["lost"]["above"]] == ["bad"]
    assert units["weak"]["fallback"] == 1
    assert units["weak"]["value"] == "'instead'"
    assert len(units["again"]["spans"]) == 2
    assert data["units"][units["each[2]"]["parent"]]["name"] == "each"
    assert data["run"]["state"] == "failed"
    assert data["run"]["sentences"][0][0].startswith("bad failed first: ValueError")
    assert data["units"][data["run"]["sentences"][0][1]]["name"] == "bad"


async def test_nothing_of_the_run_is_markup_and_nothing_is_invisible(flow):
    text = page(await flow.run())
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert text.isascii() or NASTY not in text
    for unit in data_in(text)["units"]:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\u2028\ud800]", json.dumps(unit["name"]))
        for key in ("value", "cause"):
            assert "\x1b" not in unit.get(key, "")
            assert "\u202e" not in unit.get(key, "")
        assert "\x1b" not in unit.get("error", {}).get("message", "")


async def test_the_page_asks_for_nothing(flow):
    text = page(await flow.run())
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["'](?!#)|url\(|@import|fetch\(|https?:""", _ours(text))


def _ours(text: str) -> str:
    return re.sub(r'id="data">.*?</script', "", text, flags=re.DOTALL)


async def test_it_is_one_file(flow, tmp_path: Path):
    result = await flow.run()
    result.save_html(tmp_path / "run.html")
    assert [path.name for path in tmp_path.iterdir()] == ["run.html"]
    assert (tmp_path / "run.html").read_text(encoding="utf-8") == page(result)


async def test_a_path_that_cannot_be_written_says_so(flow, tmp_path: Path):
    result = await flow.run()
    with pytest.raises(FileNotFoundError) as caught:
        result.save_html(tmp_path / "none" / "run.html")
    assert "make it first" in caught.value.__notes__[0]
    with pytest.raises(IsADirectoryError):
        result.save_html(str(tmp_path))


async def test_nested_runs_are_part_of_it():
    inner: QuantumPartitioner[Any, Any] = QuantumPartitioner()

    @inner.unit
    async def one():
        await asyncio.sleep(0.01)
        return 1

    @inner.unit
    async def two(one):
        return one + 1

    middle: QuantumPartitioner[Any, Any] = QuantumPartitioner()
    middle.include(inner, "deep")
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner()
    flow.include(middle, "part")
    data = page_data(await flow.run())
    units = {unit["name"]: unit for unit in data["units"]}
    assert list(units) == ["part", "part/deep", "part/deep/one", "part/deep/two"]
    assert [units[f"part/deep/{name}"].get("parent") for name in ("one", "two")] == [1, 1]
    assert units["part/deep"]["parent"] == 0
    assert units["part/deep/two"]["above"] == [2]
    [outer], [within] = units["part"]["spans"], units["part/deep/one"]["spans"]
    assert outer[0] <= within[0] <= within[1] <= outer[1]


async def test_an_unfinished_and_an_empty_run_have_a_page():
    empty = await QuantumPartitioner().run()
    assert data_in(page(empty))["units"] == []
    assert run_state(empty).value == "completed"

    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner()
    started = asyncio.Event()

    @flow.unit
    async def endless():
        started.set()
        await asyncio.Event().wait()

    @flow.unit
    async def after(endless): ...

    task = asyncio.create_task(flow.run())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(flow.last_result, RunResult)
    data = data_in(page(flow.last_result))
    assert data["run"]["state"] == "canceled"
    assert [unit["state"] for unit in data["units"]] == ["canceled", "canceled"]


async def test_units_that_are_no_part_of_a_run_are_drawn_pale(flow):
    data = page_data(await flow.run(targets=["weak"]))
    drawn = dict(zip(data["graph"]["names"], data["graph"]["units"], strict=True))
    assert drawn["bad"] is None
    assert data["units"][drawn["weak"]]["name"] == "weak"


async def test_a_wait_for_a_limit_names_it():
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner(limits={"api": 1})
    for name in ("first", "second"):

        @flow.unit(name=name, uses="api")
        async def call():
            await asyncio.sleep(0)

    units = page_data(await flow.run())["units"]
    assert [unit.get("held_by") for unit in units] == [None, "api"]


async def test_a_run_that_was_saved_has_the_same_page(flow, tmp_path: Path):
    result = await flow.run()
    result.save(tmp_path / "run.json")
    assert page_data(RunResult.load(tmp_path / "run.json")) == page_data(result)


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("value", [Hostile(), [Hostile()], "x" * 10**6, list(range(10**6))])
def test_a_value_is_told_shortly(value):
    assert len(short_repr(value)) <= 240


async def test_a_notebook_shows_the_run_and_the_plan(flow):
    result = await flow.run()
    shown = result._repr_mimebundle_()
    assert shown["text/plain"] == repr(result)
    assert "<svg" in shown["text/html"]
    assert "ValueError" in shown["text/html"]
    assert "<img" not in shown["text/html"]
    assert "\x1b" not in shown["text/html"]
    plan = result.plan._repr_mimebundle_()
    assert plan["image/svg+xml"].startswith("<svg")


async def test_a_notebook_draws_no_plan_of_thousands():
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner()
    for number in range(600):
        flow.add_unit(lambda ctx: None, name=f"unit {number}")
    plan = flow.build_execution_plan()
    assert set(plan._repr_mimebundle_()) == {"text/plain"}


# -- in a browser ----------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("tab", ["timeline", "graph", "table"])
async def test_a_browser_shows_it_without_a_word_on_the_console(flow, tab, tmp_path: Path):
    file = tmp_path / "run.html"
    (await flow.run(run_id="mine")).save_html(file)
    shown = opened(file, f"#tab={tab}&unit=bad", profile=tmp_path / "profile")
    assert shown.is_ready
    assert shown.console == []
    assert "img" not in [tag for tag, _ in shown.elements]
    assert "mine" in shown.texts
    assert "✗ 1 failed" in shown.texts
    # The drawer, with the error and where it was raised.
    assert "Traceback (most recent call last):" in shown.text
    assert "Needed by (1)" in shown.texts


@needs_chromium
@pytest.mark.slow
async def test_a_browser_filters_and_shows_5_000_units_by_few_rows(tmp_path: Path):
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner()
    for number in range(5_000):
        after = [f"unit {number - 7}"] if number % 50 > 7 else None
        flow.add_unit(lambda ctx: None, after, name=f"unit {number}", mode="async")
    file = tmp_path / "run.html"
    (await flow.run()).save_html(file)
    assert file.stat().st_size < 2_000_000
    whole = opened(file, "#tab=table", profile=tmp_path / "profile")
    assert whole.is_ready
    assert whole.console == []
    assert "✓ 5,000 completed" in whole.texts
    rows = [attributes for _, attributes in whole.elements if "data-unit" in attributes]
    assert 10 < len(rows) < 60
    few = opened(file, "#tab=table&query=name:*499", profile=tmp_path / "profile")
    assert "5 of 5000" in few.texts
    assert re.search("5 units: half took up to .*, 95 % up to .*, all together", few.text)
    assert len([one for _, one in few.elements if "data-unit" in one]) == 5


PLAY = """<script>
const said = {};
const key = (name) => document.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
key("f");
said.failure = units[view.unit].name;
said.drawer = !byId("drawer").hidden;
key("Escape");
said.closed = byId("drawer").hidden;
key("c");
said.critical = view.query;
key("c");
byId("query").value = 'state:completed "each"*';
byId("query").dispatchEvent(new Event("input"));
said.matches = byId("matches").textContent;
show({ query: "" });
const theme = () => getComputedStyle(document.documentElement).colorScheme;
byId("theme").click();
said.light = theme();
byId("theme").click();
said.dark = theme();
const click = (canvas, x, y) => {
  canvas.setPointerCapture = () => {};
  const { left, top } = canvas.getBoundingClientRect();
  for (const kind of ["pointerdown", "pointermove", "pointerup"])
    canvas.dispatchEvent(new PointerEvent(kind, { clientX: left + x, clientY: top + y }));
};
views.timeline.drawNow();
const wide = views.timeline.to - views.timeline.from;
views.timeline.canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, ctrlKey: true }));
said.zoomed = views.timeline.to - views.timeline.from < wide;
views.timeline.canvas.dispatchEvent(new MouseEvent("dblclick"));
said.back = views.timeline.to - views.timeline.from === wide;
show({ rows: "units" });
views.timeline.drawNow();
click(views.timeline.canvas, 30, TOP + 5);
said.firstRow = units[view.unit].name;
key("2");
views.graph.drawNow();
const { boxes, left, up, scale } = views.graph;
const box = boxes.find((one) => one.name === "lost");
click(views.graph.canvas, left + (box.left + 9) * scale, up + (box.top + 9) * scale);
said.box = units[view.unit].name;
key("3");
views.table.by("name");
said.rows = views.table.shown.slice(1, 3).map((unit) => unit.name);
said.address = location.hash;
document.body.dataset.said = JSON.stringify(said);
</script></body>"""


@needs_chromium
@pytest.mark.slow
async def test_keys_clicks_filter_and_theme_do_what_they_should(flow, tmp_path: Path):
    file = tmp_path / "run.html"
    text = page(await flow.run())
    file.write_text(text.replace("</body>", PLAY), encoding="utf-8")
    shown = opened(file, profile=tmp_path / "profile")
    assert shown.console == []
    [said] = [attributes["data-said"] for tag, attributes in shown.elements if tag == "body"]
    assert said is not None
    answer = json.loads(said)
    assert answer.pop("address").startswith("#tab=table&rows=units&unit=lost")
    assert answer.pop("firstRow") in ("a", "again")
    assert answer == {
        "failure": "bad",
        "drawer": True,
        "closed": True,
        "critical": "critical",
        "matches": "4 of 10",
        "light": "light",
        "dark": "dark",
        "zoomed": True,
        "back": True,
        "box": "lost",
        "rows": ["a", "again"],
    }

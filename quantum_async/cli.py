"""The command line: plan, run, explain, diff, what-if, report, completion.

Two rules:

* Standard output has the answer and nothing else: with ``--json`` one object, also when something
  went wrong. What units print meanwhile, and progress, go to standard error.
* Nothing that comes from a run reaches the terminal as it is: control characters are made visible.
"""

import contextlib
import importlib
import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from quantum_async.blocking import run_blocking
from quantum_async.comparison import compare
from quantum_async.core.errors import (
    ExecutionError,
    PlanError,
    QuantumError,
    RunTimeoutError,
    described,
    did_you_mean,
    message_of,
)
from quantum_async.core.layout import shorten, visible
from quantum_async.core.states import ExecutionMode, FailurePolicy, Strategy, UnitState
from quantum_async.jsonable import packed
from quantum_async.report import run_state, short_repr
from quantum_async.result import RunResult
from quantum_async.targets import TargetError, find_flow, numbers, read_input
from quantum_async.wording import counted, seconds

__all__ = ["command_line"]

OK, FAILED, WRONG_CALL, BAD_PLAN, INTERRUPTED = 0, 1, 2, 3, 130
_MOST_NAMES = 8  # of a level
_MOST_ROWS = 20

_EXIT_CODES = """\b
Exit codes:
  0    all went well
  1    units failed, or the time was up
  2    a wrong option, or a module, file or unit that is not there
  3    the plan has problems; nothing was run
  130  interrupted
"""


@contextlib.contextmanager
def _failures_told(of_plan: int = BAD_PLAN) -> Iterator[None]:
    """Turn what the library raises into a message and an exit code."""
    try:
        yield
    except PlanError as error:
        _fail(error, of_plan)
    except (QuantumError, OSError) as error:
        _fail(error, WRONG_CALL)


def _fail(error: BaseException, exit_code: int) -> NoReturn:
    """Say what happened, on standard error and with ``--json`` as the object, and end."""
    cause = error.__cause__
    if isinstance(error, TargetError) and cause is not None:
        _say("".join(traceback.format_exception(cause)).rstrip(), error=True)
    message = message_of(error)
    _say("\n".join([f"Error: {message}", *getattr(error, "__notes__", ())]), error=True)
    if click.get_current_context().params.get("as_json"):
        problems = [str(problem) for problem in getattr(error, "problems", (error,))]
        told = {"type": type(error).__name__, "message": message, "problems": problems}
        _say_json({"ok": False, "error": told})
    raise click.exceptions.Exit(exit_code)


def _say(text: str, *, error: bool = False) -> None:
    """Print text whose line ends are meant; other control characters become visible."""
    click.echo("\n".join(map(visible, text.split("\n"))), err=error)


def _say_json(answer: object) -> None:
    click.echo(json.dumps(answer, indent=2, allow_nan=False))


def in_json(value: object) -> Any:
    """Return a value as JSON has it, or its type and short repr where JSON has no such thing."""
    told = packed(value)
    return told.get("value", told)


def _writable(context: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    """Refuse a file that cannot be written before anything runs."""
    if value is not None and not value.parent.is_dir():
        raise click.BadParameter(f"the folder {str(value.parent)!r} does not exist: make it first")
    return value


def _output_file(*names: str, help: str) -> Callable[..., Any]:  # noqa: A002 - as click has it
    kind = click.Path(dir_okay=False, writable=True, path_type=Path)
    return click.option(*names, type=kind, callback=_writable, metavar="FILE", help=help)


def _choice(kind: Any) -> click.Choice[str]:
    return click.Choice([member.value for member in kind if member.value != "custom"])


_json_option = click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")
_file_argument = click.Path(dir_okay=False, path_type=Path)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES,
)
@click.version_option(package_name="quantum-async", message="%(prog)s %(version)s")
def command_line() -> None:
    """Plan, run and explain partitioners of quantum_async.

    A TARGET is module:flow or folder/file.py:flow, where flow is a QuantumPartitioner or a
    function that returns one.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where tests put their own
            stream.reconfigure(errors="backslashreplace")


# -- plan ------------------------------------------------------------------------------------------


@command_line.command()
@click.argument("target")
@click.option("--dot", "format_", flag_value="dot", help="Draw it for Graphviz.")
@click.option("--mermaid", "format_", flag_value="mermaid", help="Draw it for Markdown.")
@click.option("--svg", "format_", flag_value="svg", help="Draw it as a picture.")
@_json_option
def plan(target: str, format_: str | None, as_json: bool) -> None:
    """Show the plan of TARGET.

    That is, its levels and its critical path, or all its problems.
    """
    with _failures_told():
        found = find_flow(target).build_execution_plan()
        drawn = None if format_ is None else found.visualize(format_)
    if as_json:
        answer = {
            "ok": True,
            "fingerprint": found.fingerprint,
            "units": {name: sorted(found.dependencies[name]) for name in found.names},
            "levels": found.levels,
            "critical_path": found.critical_path,
        }
        _say_json(answer if drawn is None else {**answer, "drawing": drawn})
    elif drawn is not None:
        click.echo(drawn, nl=False)  # every name in it is quoted already
    else:
        edges = sum(map(len, found.edges_up))
        dependencies = "1 dependency" if edges == 1 else f"{edges:,} dependencies"
        _say(
            f"{counted(found.unit_count, 'unit')}, {dependencies}, "
            f"{counted(found.max_level, 'level')}; fingerprint {found.fingerprint}"
        )
        for number, names in enumerate(found.levels, 1):
            _say(f"level {number}: {_named(names, ', ')}")
        _say(f"critical path: {_named(found.critical_path, ' → ')}")


def _named(names: list[str], joint: str) -> str:
    shown = [shorten(visible(name), 60) for name in names[:_MOST_NAMES]]
    more = len(names) - len(shown)
    return joint.join([*shown, f"… {more:,} more"] if more else shown)


# -- run -------------------------------------------------------------------------------------------


@command_line.command()
@click.argument("target")
@click.option("--input", "source", metavar="FILE", help="The input, as JSON; - for standard input.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="A key of the input.")
@click.option("--mode", type=_choice(ExecutionMode), help="Where units run.")
@click.option("--workers", type=click.IntRange(min=1), help="How many units run at once.")
@click.option("--strategy", type=_choice(Strategy), help="Which ready unit goes first.")
@click.option("--policy", type=_choice(FailurePolicy), help="What a failure means for the rest.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds that the run may take.")
@click.option("--target", "units", multiple=True, metavar="UNIT", help="Only what UNIT needs.")
@click.option("--run-id", help="The run's name.")
@_output_file("--trace", help="Write a trace for Perfetto and chrome://tracing.")
@_output_file("--html", help="Write a report, one page.")
@_output_file("--save", help="Write the run, for explain, diff, what-if and report.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@_json_option
def run(
    target: str,
    source: str | None,
    changes: tuple[str, ...],
    units: tuple[str, ...],
    policy: str | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
    trace: Path | None,
    html: Path | None,
    save: Path | None,
    **options: Any,
) -> None:
    """Run TARGET and show what came of it."""
    with _failures_told():
        flow = find_flow(target)
        context = read_input(source, changes)
        options |= {"max_workers": workers, "targets": list(units) or None}
        options |= {"failure_policy": policy, "observers": [] if quiet else _progress()}
        result, error = _result_of(flow, context, options)
        if not as_json:
            _tell(result)
        if isinstance(error, RunTimeoutError):
            _say(f"Error: {error}", error=True)
        if save is not None:
            result.save(save)
        if html is not None:
            result.save_html(html)
        if trace is not None:
            result.save_trace(trace)
    if as_json:
        _say_json(_answer(result))
    if isinstance(error, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    sys.exit(OK if result.ok and error is None else FAILED)


def _result_of(
    flow: Any, context: Any, options: dict[str, Any]
) -> tuple[RunResult, BaseException | None]:
    """Run, and return the result with what the run raised."""
    before = flow.last_result
    try:
        # Units may print; the answer is alone on standard output.
        with contextlib.redirect_stdout(sys.stderr):
            return run_blocking(lambda: flow.run(context, **options)), None
    except (ExecutionError, RunTimeoutError) as error:
        return error.result, error
    except KeyboardInterrupt as error:
        if flow.last_result is before or flow.last_result is None:
            raise
        return flow.last_result, error


def _progress() -> list[Any]:
    """Return an observer that shows progress, where what it needs is installed."""
    try:
        return [importlib.import_module("quantum_async.observe.progress").Progress()]
    except ImportError:
        return []


def _answer(result: RunResult) -> dict[str, Any]:
    states = {name: state.value for name, state in result.states.items()}
    return {
        "ok": result.ok,
        "run_id": result.run_id,
        "results": {name: in_json(value) for name, value in result.items()},
        "errors": {
            name: {"type": type(error).__qualname__, "message": described(error)}
            for name, error in result.errors.items()
        },
        "states": states,
        "metrics": {name: in_json(value) for name, value in result.metrics.items()},
    }


def _tell(result: RunResult) -> None:
    """Print how a run went, a table of what did not complete, and what came out at its ends."""
    counts = Counter(state.value for state in result.states.values())
    said = ", ".join(f"{count:,} {state}" for state, count in counts.items()) or "no units"
    _say(f"{result.run_id} {run_state(result).value} in {seconds(result.duration)}: {said}")
    lost = [r for r in result.units.values() if r.state is not UnitState.COMPLETED]
    # What failed before what was skipped for it.
    lost.sort(key=lambda record: record.error is None)
    rows = [("UNIT", "STATE", "ATTEMPTS", "WHY")]
    for record in lost[:_MOST_ROWS]:
        why = (record.cause or "") if record.error is None else described(record.error)
        name, why = shorten(visible(record.name), 40), shorten(visible(why), 90)
        rows.append((name, record.state.value, str(record.attempts), why))
    if lost:
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        click.echo()
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            click.echo("  ".join([*cells, row[3]]).rstrip())
        if len(lost) > _MOST_ROWS:
            click.echo(f"… and {len(lost) - _MOST_ROWS:,} more")
    ends = [result.plan.names[unit] for unit in result.plan.sinks]
    found = [name for name in ends if name in result][:_MOST_ROWS]
    if found:
        click.echo()
    for name in found:
        _say(f"{shorten(visible(name), 40)}: {visible(shorten(short_repr(result[name]), 100))}")


# -- what was -------------------------------------------------------------------------------------


@command_line.command()
@click.argument("file", type=_file_argument)
@click.argument("unit", required=False)
@_json_option
def explain(file: Path, unit: str | None, as_json: bool) -> None:
    """Say where a saved run's time went.

    FILE is what `run --save` wrote. With UNIT: what became of that one.
    """
    with _failures_told():
        result = RunResult.load(file)
        if unit is not None and unit not in result.units:
            raise TargetError(f"no unit {unit!r} in this run{did_you_mean(unit, result.units)}")
        said = result.explain(unit)
    if as_json:
        answer = {"run_id": result.run_id, "state": run_state(result).value, "unit": unit}
        path = result.critical_path
        _say_json({**answer, "explanation": said.split("\n"), "critical_path": path})
    else:
        _say(said)


@command_line.command()
@click.argument("before", type=_file_argument)
@click.argument("after", type=_file_argument)
@_json_option
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Say what made one saved run slower.

    That is, which unit and which wait made AFTER slower than BEFORE.
    """
    with _failures_told():
        comparison = compare(RunResult.load(before), RunResult.load(after))
    if as_json:
        _say_json(comparison.as_dict())
    else:
        _say(str(comparison))


@command_line.command("what-if")
@click.argument("file", type=_file_argument)
@click.option(
    "--duration", "durations", multiple=True, metavar="UNIT=SECONDS", help="How long UNIT takes."
)
@click.option("--workers", type=click.IntRange(min=1), help="How many units run at once.")
@click.option(
    "--limit", "limits", multiple=True, metavar="NAME=NUMBER", help="As if a limit were so."
)
@_json_option
def what_if(
    file: Path,
    durations: tuple[str, ...],
    workers: int | None,
    limits: tuple[str, ...],
    as_json: bool,
) -> None:
    """Model a saved run under other terms.

    Units that are not named take as long as they did.
    """
    with _failures_told(of_plan=WRONG_CALL):
        result = RunResult.load(file)
        modelled = result.what_if(
            durations=numbers(durations, "--duration"),
            max_workers=workers,
            limits=numbers(limits, "--limit"),
        )
    measured, makespan = result.duration, modelled.makespan
    if as_json:
        answer = {"measured": measured, "makespan": makespan}
        _say_json({**answer, "starts": dict(modelled.starts), "ends": dict(modelled.ends)})
        return
    change = f", {makespan / measured - 1:+.0%}" if measured > 0 else ""
    _say(f"{seconds(makespan)} instead of {seconds(measured)}{change}")


@command_line.command()
@click.argument("file", type=_file_argument)
@_output_file("-o", "--output", help="The page; by default FILE with the ending .html.")
@_json_option
def report(file: Path, output: Path | None, as_json: bool) -> None:
    """Write the report of a saved run."""
    output = output or file.with_suffix(".html")
    with _failures_told():
        RunResult.load(file).save_html(output)
    if as_json:
        _say_json({"ok": True, "output": str(output)})
    else:
        _say(str(output))


_COMPLETION = """Print the script for completion in SHELL.

\b
bash:  eval "$(quantum-async completion bash)"
zsh:   eval "$(quantum-async completion zsh)"
fish:  quantum-async completion fish | source
"""


@command_line.command(help=_COMPLETION)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script for a shell."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(command_line, {}, "quantum-async", "_QUANTUM_ASYNC_COMPLETE").source())

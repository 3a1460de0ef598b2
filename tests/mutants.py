"""Mutants of the decision core: ``make mutants``, or ``python -m tests.mutants``.

mutmut changes the files named in ``[tool.mutmut]`` of pyproject.toml in one small way at a time,
and runs the tests that are named there and are not slow. Each change has to make one of them fail
(or never end), or to be in `EXPLAINED`. An explanation whose change is killed, or is not made any
more, is refused too.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

_TIE = "a rank is in a queue's list or in its heap, never in both, so they are never equal"

# Why no test can tell a change: by function, and the line as it is changed.
EXPLAINED = {
    ("next_start", "if batch and not (heap and heap[0] <= batch[-1]):"): _TIE,
    ("_best_was_there", "return bool(batch) and not (heap and heap[0] <= batch[-1])"): _TIE,
    ("_best_lane", "if heap and heap[0] <= rank:"): "equal ranks are the same rank",
    (
        "_best_lane",
        "if (rank, lane) <= (best, best_lane) and self.has_room(lane):",
    ): "each lane is looked at once, so no pair comes twice",
    (
        "_best_lane",
        "idle.append(None)",
    ): "lanes without anybody may stay among the busy ones: it only takes longer",
    (
        "_settle_before_start",
        "self.triggers.success(dependent, unit, None)",
    ): "only winners matter here; how many are left is asked by `_may_begin`",
}
OUT = Path("mutants")  # where mutmut works; it has no option for it


def mutmut(*arguments: str) -> str:
    """Run mutmut and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"mutmut {' '.join(arguments)} failed:\n{done.stdout[-4000:]}")
    return done.stdout


def survivors() -> dict[str, tuple[str, str]]:
    """Return, for each mutant that no test tells, its function and its changed lines."""
    found = {}
    for line in mutmut("results").splitlines():
        name, _, verdict = line.strip().partition(": ")
        if verdict in ("", "killed", "timeout"):
            continue
        function = name.rpartition("__mutmut_")[0].rpartition(".")[2]
        changed = [
            row[1:].strip()
            for row in mutmut("show", name).splitlines()
            if row.startswith("+") and not row.startswith("+++")
        ]
        found[name] = function.rpartition("ǁ")[2].removeprefix("x_"), " ".join(changed)
    return found


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run all mutants; return 1 if one lives that is not explained."""
    shutil.rmtree(OUT, ignore_errors=True)
    tell("Making mutants and trying them; this takes some minutes …")
    mutmut("run")
    mutmut("export-cicd-stats")
    total = json.loads((OUT / "mutmut-cicd-stats.json").read_text(encoding="utf-8"))["total"]
    alive = survivors()
    lives = {name: change for name, change in alive.items() if change not in EXPLAINED}
    stale = EXPLAINED.keys() - set(alive.values())
    tell(
        f"{total} mutants: {total - len(alive)} killed, {len(alive) - len(lives)} explained, "
        f"{len(lives)} alive"
    )
    for name, (function, change) in lives.items():
        tell(f"alive: {function}: {change}    (mutmut show {name})")
    for function, change in sorted(stale):
        tell(f"explained, but killed or not made any more: {function}: {change}")
    return 1 if lives or stale else 0


if __name__ == "__main__":
    sys.exit(main())

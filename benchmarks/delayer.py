"""Policies that decide when dp ranks compute prompts, on the same traces, in virtual time.

    python benchmarks/delayer.py [--quick]
    python benchmarks/delayer.py --measure FILE; python benchmarks/delayer.py --calibrate FILE

First each rival has to reproduce what it has published, on the machine that was fitted to its run
without it. Then all policies meet on all traces, and the aims are judged. Then each constant of
each machine is halved and doubled, and the aims are judged again. docs/data-parallel.md describes
the costs, the machines, and where the constants are from.

`value`: tokens a second of ours, offline. `ratio`: the smallest over the traces of ours over the
best rival in tokens a second; `ratio_beyond` is that of traces which are not among those asked for.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import doing, say
from delaying.aims import Aim, Outcomes, aims, over, rate, standing
from delaying.calibrate import fit, read
from delaying.costs import CONSTANTS, MACHINES, Machine
from delaying.fleet import Outcome
from delaying.match import POLICIES, cases, ours, play, table
from delaying.published import reproduce
from delaying.rivals import RIVALS

SIZES = ("slots", "chunk")
"""Of a machine; varied as its constants are."""


def figures(outcome: Outcome, off: Outcome) -> dict[str, float]:
    return {
        "tok_s": round(outcome.rate, 1),
        "over_off": round(outcome.rate / off.rate, 4),
        "ttft_p50_s": round(outcome.wait(0.5), 4),
        "ttft_p99_s": round(outcome.wait(0.99), 4),
        "gap_p50_ms": round(1000 * outcome.gap(0.5), 2),
        "gap_p99_ms": round(1000 * outcome.gap(0.99), 2),
        "passes": outcome.passes,
        "with_prompts": outcome.extends,
    }


def show(outcomes: Outcomes) -> None:
    names = f"{'tok/s':>9}{'/off':>7}{'TTFT p99':>10}{'/off':>7}{'gap p50':>9}{'p99 ms':>8}"
    say(f"{'':26}{names}  ours is")
    for trace, row in outcomes.items():
        for policy, outcome in row.items():
            off = row["off"]
            late = outcome.wait(0.99)
            say(
                f"{trace if policy == 'off' else '':18}{policy:8}{outcome.rate:9.0f}"
                f"{outcome.rate / off.rate:7.3f}{late:10.2f}{late / off.wait(0.99):7.3f}"
                f"{1000 * outcome.gap(0.5):9.1f}{1000 * outcome.gap(0.99):8.1f}"
                + (f"  {standing(row['ours'], outcome)}" if policy not in ("off", "ours") else "")
            )


def tell(found: list[Aim]) -> None:
    for aim in found:
        say(f"  {'holds' if aim.holds else 'FAILS'}  {aim.what}: {aim.found}")


def varied() -> Iterator[tuple[str, Mapping[str, Machine]]]:
    """The machines of the traces that the aims are about, with one number halved or doubled."""
    for name in ("sglang", "vllm"):
        machine = MACHINES[name]
        for constant in (*CONSTANTS, *SIZES):
            for factor in (0.5, 2.0):
                if constant in SIZES:
                    size = round(getattr(machine, constant) * factor)
                    changed = replace(machine, **{constant: size})
                else:
                    changed = machine.scaled(constant, factor)
                yield f"{name}, {constant} × {factor:g}", MACHINES | {name: changed}


def vary(scale: float) -> dict[str, list[str]]:
    """Of each change, the aims that fail. What is not on the changed machine stays as it is."""
    usual = table(MACHINES, scale, lambda case: case.asked)
    failing: dict[str, list[str]] = {}
    for change, machines in varied():
        name = change.partition(",")[0]
        changed = table(
            machines, scale, lambda case, name=name: case.asked and case.machine == name
        )
        found = aims(usual | changed)
        failing[change] = [f"{aim.what}: {aim.found}" for aim in found if not aim.holds]
        say(f"{change}: {'; '.join(failing[change]) or 'all hold'}")
    return failing


def smallest(outcomes: Outcomes) -> tuple[float, str]:
    """Over the traces, of ours over the best rival in tokens a second."""
    others = [name for name in RIVALS if name != "off"]
    return min(
        (row["ours"].rate / max(row[other].rate for other in others), trace)
        for trace, row in outcomes.items()
    )


def compare(asked: argparse.Namespace) -> dict[str, Any]:
    scale = 0.5 if asked.quick else 1.0
    reproduced = reproduce()
    for each in reproduced:
        figure = each.figure
        verdict = "ok" if each.holds else "NOT REPRODUCED"
        say(
            f"{verdict}: {each.run}: {figure.what} {each.found:.3f}"
            f" (published {figure.figure:.3f}, accepted {figure.least:g}–{figure.most:g})"
        )
    every = table(MACHINES, scale)
    of_aims = {name: every[name] for name, case in cases(scale=scale).items() if case.asked}
    beyond = {name: row for name, row in every.items() if name not in of_aims}
    show(every)
    found = aims(of_aims)
    tell(found)
    ratio, where = smallest(of_aims)
    ratio_beyond, where_beyond = smallest(beyond)
    say(f"smallest ratio {ratio:.4f} ({where}); beyond {ratio_beyond:.4f} ({where_beyond})")
    aligned = {
        name: round(play(MACHINES, case, "ours", ours(align=2)).rate / every[name]["off"].rate, 4)
        for name, case in cases(scale=scale).items()
        if name in beyond
    }
    say(f"ours with align 2, over off: {aligned}")
    failing = {} if asked.quick else vary(scale)
    mine = every["offline"]["ours"]
    return {
        "value": round(mine.rate, 1),
        "baseline": round(every["offline"]["off"].rate, 1),
        "ratio": round(ratio, 4),
        "ratio_trace": where,
        "ratio_beyond": round(ratio_beyond, 4),
        "ratio_beyond_trace": where_beyond,
        "offline_ratio": round(over(every, "offline", rate), 4),
        "online_ratio": round(over(every, "poisson 110%", rate), 4),
        "persistent_mixed_ratio": round(over(every, "persistent mixed", rate), 4),
        "reproduced": {
            f"{each.run}, {each.figure.what}": [round(each.found, 3), each.holds]
            for each in reproduced
        },
        "aims": {aim.what: [aim.holds, aim.found] for aim in found},
        "beyond_with_align_2": aligned,
        "failing_when_varied": {change: lost for change, lost in failing.items() if lost},
        "varied": len(failing),
        "table": {
            trace: {policy: figures(outcome, row["off"]) for policy, outcome in row.items()}
            for trace, row in every.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="shorter traces, constants as they are"
    )
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="fit a cost to its passes")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="passes of real workers here")
    asked = parser.parse_args()
    if asked.measure:
        from delaying.workers import measured  # torch, for this alone

        with doing("passes of two dp ranks on this machine", 1800), asked.measure.open("w") as file:
            for loads, seconds in measured(40 if asked.quick else 160):
                file.write(json.dumps({"loads": loads, "seconds": seconds}) + "\n")
        return
    if asked.calibrate:
        cost, miss = fit(read(asked.calibrate))
        print(json.dumps({"name": "delayer_cost", **asdict(cost), "median_miss": round(miss, 4)}))
        return
    with doing(
        f"{len(POLICIES)} policies, {len(cases(scale=0.01))} traces", 300 if asked.quick else 3600
    ):
        found = compare(asked)
    python = platform.python_version()
    result = {
        "name": "delayer",
        "unit": "tok/s (virtual time)",
        "better": "higher",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {python}",
        **found,
    }
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()

"""`make simulate`: many schedules on all cores, or one with its trace."""

import argparse
import gc
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from multiprocessing import Pool

from .schedule import ENDPOINT, Outcome, run

BATCH = 50  # schedules that a core takes at once
SHOWN = 10  # of each kind of violation
SHARE = 0.3  # of schedules that are about endpoints
TAIL = 40  # lines of the trace of the first of each kind


def _batch(task: tuple[range, bool]) -> tuple[list[Outcome], Counter[str], int, int]:
    seeds, endpoints = task
    logging.disable(logging.CRITICAL)
    gc.disable()  # a schedule is over before its garbage matters
    gc.collect()
    failed: list[Outcome] = []
    hits: Counter[str] = Counter()
    events = rounds = 0
    for seed in seeds:
        outcome = run(seed, endpoints=endpoints)
        hits.update(outcome.hits)
        events, rounds = events + outcome.events, rounds + outcome.rounds
        if outcome.violation:
            failed.append(outcome)
    return failed, hits, events, rounds


def _replay(name: str) -> int:
    logging.disable(logging.CRITICAL)
    outcome = run(int(name.removeprefix(ENDPOINT)), endpoints=name.startswith(ENDPOINT), traced=True)
    print("\n".join(outcome.trace or ()))
    print(f"seed={name} events={outcome.events} rounds={outcome.rounds} violation={outcome.violation or 'none'}")
    return bool(outcome.violation)


def _table(hits: Counter[str], schedules: int) -> Iterable[str]:
    yield f"{'what':<44}{'schedules':>10}{'share':>8}"
    for name, count in sorted(hits.items()):
        yield f"{name:<44}{count:>10}{100 * count / schedules:>7.2f}%"


def _batches(first: int, seeds: int, *, endpoints: bool) -> list[tuple[range, bool]]:
    return [(range(start, min(start + BATCH, first + seeds)), endpoints) for start in range(first, first + seeds, BATCH)]


def _simulate(first: int, jobs: int, endpoints: int, *, coverage: bool) -> int:
    seeds = jobs + endpoints
    began, failed, hits, events, rounds = time.monotonic(), list[Outcome](), Counter[str](), 0, 0
    batches = [*_batches(first, jobs, endpoints=False), *_batches(first, endpoints, endpoints=True)]
    with Pool(os.cpu_count()) as pool:
        for some, seen, happened, worked in pool.imap(_batch, batches):
            failed += some
            hits += seen
            events, rounds = events + happened, rounds + worked
    if coverage:
        print("\n".join(_table(hits, seeds)))
    print(f"{events} events, {rounds} rounds of the operator")
    for name, count in Counter(outcome.invariant for outcome in failed).most_common():
        print(f"{count} times: {name}")
        of_kind = [o for o in failed if o.invariant == name]
        for outcome in of_kind[:SHOWN]:
            print(f"  seed {outcome.name}: {outcome.violation}")
        print("\n".join(f"    {line}" for line in (run(of_kind[0].seed, endpoints=of_kind[0].endpoints, traced=True).trace or [])[-TAIL:]))
    if failed:
        print(f"failing seeds: {' '.join(o.name for o in failed[:200])}")
        print(f"replay one with: make simulate SEED={failed[0].name}")
    print(f"schedules={seeds} violations={len(failed)} seconds={time.monotonic() - began:.0f}")
    return bool(failed)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="simulate", description="Schedules of random faults around the real operator.")
    parser.add_argument("--seeds", type=int, default=10_000, help="number of schedules")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--seed", help=f"replay this one with its trace; those about endpoints begin with {ENDPOINT}")
    parser.add_argument("--kind", choices=("jobs", "endpoints"), help="only schedules about jobs, or about endpoints")
    parser.add_argument("--coverage", action="store_true", help="print what the schedules came by")
    wanted = parser.parse_args()
    if wanted.seed is not None:
        return _replay(wanted.seed)
    endpoints = {"jobs": 0, "endpoints": wanted.seeds}.get(wanted.kind, round(wanted.seeds * SHARE))
    return _simulate(wanted.first, wanted.seeds - endpoints, endpoints, coverage=wanted.coverage)


if __name__ == "__main__":
    sys.exit(main())

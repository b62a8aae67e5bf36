#!/usr/bin/env python3
"""What should the daemon do with pictures that the kernel's page cache holds too?

    tools/simulate_page_cache.py

Prints, as Markdown, what readers wait on average behind page caches of several sizes: if the daemon
counts the kernel's hits as requests, if it does not, and if it drops finished files as soon as the
kernel has them.  A forgetful kernel loses all its pages every few thousand requests.
"""

from __future__ import annotations

from cachesim.kernel import BehindKernel
from cachesim.simulator import Delays, replay
from cachesim.traces import all_traces

TRACES = ("zipf-0.8", "ageing", "shifting", "crawler")
DELAYS = Delays(fetch_s=0.010, render_s=0.030)
BUDGET_PART = 0.05
WAYS = {
    "counted": {"counts_hits": True, "keeps_pixels": True},
    "not counted": {"counts_hits": False, "keeps_pixels": True},
    "dropped": {"counts_hits": False, "keeps_pixels": False},
}


def main() -> None:
    traces = all_traces(60_000, 6_000)
    print("| trace | page cache | forgets | " + " | ".join(WAYS) + " |")
    print("|---|---|---|" + "---|" * len(WAYS))
    for name in TRACES:
        trace = traces[name]()
        budget_bytes = int(BUDGET_PART * trace.total_pixel_bytes)
        for times, forgets_every in ((0.25, None), (1, None), (4, None), (4, 3000)):
            cells = []
            for way in WAYS.values():
                cache = BehindKernel(
                    trace,
                    DELAYS,
                    budget_bytes=budget_bytes,
                    kernel_bytes=int(times * budget_bytes),
                    forgets_every=forgets_every,
                    **way,
                )
                cells.append(f"{replay(trace, cache, DELAYS).mean_s * 1e3:.2f} ms")
            forgets = f"every {forgets_every}" if forgets_every else "never"
            print(f"| {name} | {times:g} x --cache | {forgets} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

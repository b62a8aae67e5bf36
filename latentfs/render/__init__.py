"""Rendering: the scheduler and its client in the daemon, the renderer process with torch."""

_MALLOC_TUNABLES = {"hugetlb": 1, "mmap_threshold": 1 << 32, "trim_threshold": 1 << 33}

OPENMP_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""For a process that is to load torch, unless the user has set it.  The bits stay the same.

By default OpenMP's threads wait for each other by spinning.  Where another process needs one of the
cores, each layer then waits for a time slice: on 2 cores beside a busy process, a 128x128 picture
took 1.28 s instead of 0.13 s, one of 512x512 3.8 s instead of 2.8 s.
"""

TORCH_ENVIRONMENT = {
    **OPENMP_ENVIRONMENT,
    "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{k}={v}" for k, v in _MALLOC_TUNABLES.items()),
}
"""For processes to be started that decode on a CPU, unless the user has set it; only for those, as
others need to give memory back.  The bits stay the same.

By default malloc returns large blocks to the kernel when they are freed.  Each layer's activations
then fault in anew, page by page, which took a third of the time of a decode: 512x512 in bfloat16
0.95 s instead of 0.53 s with a TAESD.  What is kept is returned when the renderer is idle.
"""

QUIET_ENVIRONMENT = {
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
}
"""For the same processes: no chatter, and nothing is ever downloaded."""

"""Rendering: the scheduler and its client in the daemon, the renderer process with torch."""

TORCH_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""To be set before torch is loaded, unless the user has set it.

By default OpenMP's threads wait for each other by spinning.  Where another process needs one of the
cores, each layer then waits for a time slice: on 2 cores beside a busy process, a 128x128 picture
took 1.28 s instead of 0.13 s, one of 512x512 3.8 s instead of 2.8 s.  The bits are the same.
"""

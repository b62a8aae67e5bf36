"""Rendering: the scheduler and its client in the daemon, the renderer process with torch."""

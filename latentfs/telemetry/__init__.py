"""What the daemon tells of itself: counts, times, metrics over HTTP, log lines."""

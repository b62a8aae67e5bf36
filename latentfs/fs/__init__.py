"""The mounted filesystem and its daemon."""

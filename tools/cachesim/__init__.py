"""Replays traces of reads through the caches of latentfs under a virtual clock."""

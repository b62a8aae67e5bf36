"""Measuring what rendering through a mount costs, by stage, and replaying traces of requests."""

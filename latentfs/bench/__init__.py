"""Measuring what rendering through a mount costs on top of the bare decode, by stage."""

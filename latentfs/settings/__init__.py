"""What can be set for a mount, and where each value came from.

Imports no other room, but for what an address is.
"""

"""Latents: reading the files users have, what their numbers mean, and storing them losslessly.

Nothing here imports torch, decodes a picture or knows about the store.
"""

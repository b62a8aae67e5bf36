"""Pictures as files: PNG and JPEG encoding, metadata in their own form, framing to an exact size.

Nothing here imports torch or knows about latents or the store.
"""

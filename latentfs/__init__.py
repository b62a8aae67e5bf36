"""latentfs: pictures stored as latents, served as ordinary files."""

__version__ = "0.1.0"

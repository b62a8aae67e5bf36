"""Getting latents and VAEs into a store, and pictures out of it."""

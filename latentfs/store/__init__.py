"""The durable form: a directory with an LMDB environment and the VAEs."""

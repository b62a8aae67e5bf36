"""Eviction policies behind one interface, to compare by replaying the same requests."""

from collections.abc import Mapping

from cachesim.policies.gdsf import Gdsf
from cachesim.policies.lru import Lru
from cachesim.policies.policy import OnEvicted, Policy, PolicyFactory
from cachesim.policies.s3fifo import S3Fifo
from cachesim.policies.sieve import Sieve
from cachesim.policies.wtinylfu import WTinyLfu

__all__ = [
    "POLICIES",
    "Gdsf",
    "Lru",
    "OnEvicted",
    "Policy",
    "PolicyFactory",
    "S3Fifo",
    "Sieve",
    "WTinyLfu",
]

POLICIES: Mapping[str, PolicyFactory] = {
    "lru": Lru,
    "sieve": Sieve,
    "s3fifo": S3Fifo,
    "wtinylfu": WTinyLfu,
    "gdsf": Gdsf,
}

"""Recipes keep their names, and tell what is meant from how it is computed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from latentfs.latents.recipe import Recipe
from latentfs.latents.scaling import Step

RECIPE = Recipe(
    vae="v",
    vae_class="AutoencoderKL",
    dtype="bfloat16",
    scaling=(Step("divide", 0.5),),
    scaling_dtype="recipe",
    rounding="round",
    batch=1,
    cpu_threads=2,
)
# As the versions before each of the later fields named them.
BEFORE_LAYOUT = "197330ee55108b605b4e500aebabe591"
BEFORE_COMPILED = "0e195ac094248597d70a1c3d25e1d0ce"


def with_(**changes: Any) -> Recipe:
    return msgspec.structs.replace(RECIPE, **changes)


def test_recipes_of_older_versions_keep_their_names() -> None:
    assert RECIPE.id.hex() == BEFORE_LAYOUT
    later = with_(layout="channels_last", device="cuda", widened_from="float16", tiled=True)
    assert later.id.hex() == BEFORE_COMPILED


def test_a_stored_recipe_that_lacks_the_later_fields_is_read_with_their_defaults() -> None:
    fields = msgspec.structs.asdict(RECIPE)
    for name in ("layout", "device", "widened_from", "tiled", "compiled"):
        del fields[name]
    assert msgspec.json.decode(msgspec.json.encode(fields), type=Recipe) == RECIPE


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "channels_last"},
        {"device": "cuda"},
        {"dtype": "float32", "widened_from": "bfloat16"},
        {"tiled": True},
        {"compiled": True},
    ],
)
def test_each_later_field_makes_another_recipe_of_the_same_intent(changes: dict[str, Any]) -> None:
    changed = with_(**changes)
    assert changed.id != RECIPE.id
    assert changed.intent == RECIPE.intent


def test_only_the_device_it_was_made_for_compiles() -> None:
    recipe = with_(device="cuda", compiled=True, batch=8)
    assert recipe.adapted_to("cuda") is recipe
    assert recipe.adapted_to("cpu") == with_(layout="channels_last")

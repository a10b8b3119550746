"""How caches and checkpoints describe the settings of their data."""

import functools

from plug_jax.data.descriptions import describe
from plug_jax.data.features import Feature
from plug_jax.data.preprocessors.masking import masked_language_model
from plug_jax.data.sources.text_source import TextSource


def test_names_do_not_tell_the_folder_of_a_module():
    assert describe(functools.partial(masked_language_model, mask_rate=0.15)) == {
        "function": "plug_jax.data.masking.masked_language_model",
        "arguments": {"mask_rate": 0.15},
    }
    assert describe(TextSource) == "plug_jax.data.sources.TextSource"
    assert describe(Feature) == "plug_jax.data.features.Feature"

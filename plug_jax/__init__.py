"""PLUG language models (StructBERT encoder, PALM encoder-decoder) in JAX.

>>> import plug_jax
>>> model = plug_jax.load("run2")  # doctest: +SKIP
>>> model.generate("今天天气")[0].text  # doctest: +SKIP

Nothing heavy is imported before the first use of a name. docs/python.md describes the interface.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plug_jax.errors import PlugError
    from plug_jax.inference.encoding import EncodedText, Token
    from plug_jax.inference.generator import GeneratedText
    from plug_jax.inference.loaded import ClassifiedText, Model, load
    from plug_jax.inference.mask_filling import Candidate, FilledMask
    from plug_jax.inference.model import NoNumbersError
    from plug_jax.inference.request_options import (
        EmbeddingOptions,
        GenerationOptions,
        MaskOptions,
    )
    from plug_jax.inference.scoring import Score
    from plug_jax.partitioning import Partitioner

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "ClassifiedText",
    "EmbeddingOptions",
    "EncodedText",
    "FilledMask",
    "GeneratedText",
    "GenerationOptions",
    "MaskOptions",
    "Model",
    "NoNumbersError",
    "Partitioner",
    "PlugError",
    "Score",
    "Token",
    "__version__",
    "load",
]

# Where a name is defined.
_HOMES = {
    "PlugError": "plug_jax.errors",
    "Partitioner": "plug_jax.partitioning",
    "NoNumbersError": "plug_jax.inference.model",
    "GeneratedText": "plug_jax.inference.generator",
    "Score": "plug_jax.inference.scoring",
    **dict.fromkeys(("EncodedText", "Token"), "plug_jax.inference.encoding"),
    **dict.fromkeys(("Candidate", "FilledMask"), "plug_jax.inference.mask_filling"),
    **dict.fromkeys(
        ("EmbeddingOptions", "GenerationOptions", "MaskOptions"),
        "plug_jax.inference.request_options",
    ),
    **dict.fromkeys(("ClassifiedText", "Model", "load"), "plug_jax.inference.loaded"),
}


def __getattr__(name: str) -> Any:
    """A public name, imported on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'plug_jax' has no attribute {name!r}")
    if ".inference." in _HOMES[name] and "tensorflow" not in sys.modules:
        from plug_jax.tensorflow_import import import_tensorflow, quiet_tensorflow

        quiet_tensorflow()
        import_tensorflow(lean=False)
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

"""PLUG's two stages as they were trained: what gin_configs/objectives/ composes."""

from __future__ import annotations

from plug_jax.objectives.continuation import Continuation
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.objectives.sentence_structural import SentenceStructural

STRUCTBERT = (MaskedLM(word_structural=True), SentenceStructural())
PALM = (MaskedLM(until=0.9, capacity=0.25), Continuation())

# What is looked for in a task of which no more is known than its features.
KNOWN = (MaskedLM(word_structural=True), MaskedLM(), SentenceStructural(), Continuation())

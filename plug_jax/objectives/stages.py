"""The objectives of PLUG's two stages, as composed in gin_configs/objectives/."""

from __future__ import annotations

from plug_jax.objectives.continuation import Continuation
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.objectives.sentence_structural import SentenceStructural

STRUCTBERT = (MaskedLM(word_structural=True), SentenceStructural())
PALM = (MaskedLM(until=0.9, capacity=0.25), Continuation())

# Candidates for a task of which only the features are known.
KNOWN = (MaskedLM(word_structural=True), MaskedLM(), SentenceStructural(), Continuation())

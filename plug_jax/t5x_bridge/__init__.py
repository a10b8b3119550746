"""PLUG under t5x's own train.py, eval.py and infer.py: docs/t5x.md.

t5x is used unchanged, through its extension points, and is not a dependency of plug-jax: modules
that import it say so in their first line.
"""

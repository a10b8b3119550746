"""PLUG under t5x's own train.py, eval.py and infer.py: docs/t5x.md.

t5x is used unchanged, through its extension points, and is no dependency of plug-jax: the modules
that import it say so in their first line.
"""

"""`plug-jax demo` and `demo-finetune`: training, n-gram baselines, reports."""

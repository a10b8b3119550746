"""Fine-tuned runs: sweeps, outputs and ensembles."""

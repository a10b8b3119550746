"""The hosts of a run: that they live and get on, and how they end together."""

"""The CLUE benchmark as files: reading, metrics, scores of predictions, submissions."""

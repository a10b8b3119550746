"""A trained model put to use: texts generated and scored, in batches, on any mesh."""

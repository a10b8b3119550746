"""Host-side input: vocabularies, sources, preprocessors, offline caches and the pipeline."""

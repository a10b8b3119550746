"""Host-side input pipeline: vocabularies, sources, objectives, packing and batches."""

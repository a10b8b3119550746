"""A trained model put to use: texts written, scored and read, in batches, on any mesh."""

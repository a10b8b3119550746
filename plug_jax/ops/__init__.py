"""Pure functions on arrays: masks, attention, KV cache. They do not use the config."""

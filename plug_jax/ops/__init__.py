"""Pure functions on arrays: masks, attention, key/value cache. They never see the config."""

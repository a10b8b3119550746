"""Offline caches of tasks, made with Apache Beam; only `run` and `grouping` import it."""

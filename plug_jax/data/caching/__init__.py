"""Offline caches of tasks, made with Apache Beam, which only `run` and `grouping` import."""

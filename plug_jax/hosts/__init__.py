"""The hosts of a run: heartbeats, hang detection, and coordinated exit."""

"""From a task's examples to a process's batches, resumable at any step."""

"""Chinese generation tasks: official files, their examples, and metrics."""

"""Chinese generation tasks: official files, what a model is fed of them, and their metrics."""

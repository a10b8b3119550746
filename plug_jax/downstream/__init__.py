"""Fine-tuning tasks: from records to examples, and from a model's outputs to answers."""

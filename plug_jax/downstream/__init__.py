"""Tasks of fine-tuning: from records to examples, and from what a model gives to answers."""

"""What a seqio task feeds the model: decoded, counted, compared and shown."""

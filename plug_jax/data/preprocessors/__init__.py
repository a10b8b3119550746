"""From documents to the examples of an objective: cleaning, cutting, masking, reordering."""

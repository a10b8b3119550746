"""seqio registrations: the tasks and mixtures that gin configs name."""

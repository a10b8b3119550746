"""seqio registrations: the tasks and mixtures named by gin configs."""

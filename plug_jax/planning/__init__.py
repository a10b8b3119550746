"""What a run needs of TPUs, and how fast it can be, from compiling it."""

"""Training objectives, one file each; gin names them, and a run composes several."""

"""What a run trains: a file for each objective; gin names them, and a run composes several."""

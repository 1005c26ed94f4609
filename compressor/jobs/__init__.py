"""What each command does, for library users too: plain values in, an artifact and its results out."""

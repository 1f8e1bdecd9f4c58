"""Training state: captured from live objects, saved, loaded, restored into live objects."""

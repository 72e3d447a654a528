"""What administrators of the server ask, by HTTP."""

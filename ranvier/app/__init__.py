"""Programs by the names that classic unit files call."""

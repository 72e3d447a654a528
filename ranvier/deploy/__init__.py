"""Put a server of several workers onto one Linux host with systemd, and see whether all is well with it."""

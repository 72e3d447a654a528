"""What people do in a large room, and how long each thing keeps everybody else waiting."""

"""The form of several workers: what it costs, and what one worker more or less does to requests."""

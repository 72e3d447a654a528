"""The one commit-ordered log: appended to by every process, followed by every process."""

"""The servers that can be measured: what each needs to be configured, started, found in /proc and stopped."""

"""Measure Ranvier beside the known server: one driver, one machine, one PostgreSQL (`python -m bench`)."""

"""Drifting models: the method, its fields by name, and what is monitored."""

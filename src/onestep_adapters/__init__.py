"""Links from the core to networks, encoders, data, samplers and training loops."""

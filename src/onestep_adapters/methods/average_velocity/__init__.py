"""Methods whose network is an average velocity."""

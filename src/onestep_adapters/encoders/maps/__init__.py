"""Outputs of layers as maps, and the features of a map."""

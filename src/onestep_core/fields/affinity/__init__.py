"""The engine that evaluates affinities between two clouds: streamed by torch, or in Triton kernels."""

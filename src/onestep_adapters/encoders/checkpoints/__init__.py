"""Pretrained networks: published names of weights, modules of transformers, EfficientNet-Lite0."""

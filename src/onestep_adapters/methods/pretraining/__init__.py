"""Pretraining of encoders: contrastive learning and masked reconstruction."""

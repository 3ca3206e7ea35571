"""Regraft: retrain an image classifier on a pretrained backbone and publish it for serving."""

__version__ = "0.1.0"

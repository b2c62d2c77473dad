"""Pretraining of the two models that ship with the package."""

"""Inference without training: predictions, errors, the consistency energy."""

"""Training one network of the graph: its parts, which `train.py` puts together."""

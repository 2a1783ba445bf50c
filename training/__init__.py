"""The parts of training one network of the graph. `train.py` puts them together."""

"""The methods that `train.py` trains rgb → target by: the paper's, and what it compares with."""

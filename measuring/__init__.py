"""What is computed without training: predictions, errors, the consistency energy."""

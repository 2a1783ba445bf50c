"""What scripts.reproduce does: its scales, its stages with their commands, and its report."""

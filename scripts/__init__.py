"""Programs. Run them with `python -m scripts.NAME`."""

"""The benchmark's part that loads: files as published, files as here, and a pack."""

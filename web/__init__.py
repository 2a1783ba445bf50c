"""The web page of scripts/web.py: a tab a file."""

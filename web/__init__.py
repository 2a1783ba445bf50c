"""The web page of scripts/web.py, with a file for each tab."""

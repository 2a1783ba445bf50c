"""Procedural indoor rooms in Taskonomy's encodings: scene -> trace -> shade -> domains."""

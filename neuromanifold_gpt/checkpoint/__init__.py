"""Checkpoints as files: their names, bytes, commit rule, reading, and finding.

``archive.py`` writes a data file, ``reader.py`` reads one, ``commit.py`` says when a checkpoint exists.
"""

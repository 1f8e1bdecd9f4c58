"""Text as tokens, and loaders whose position in it survives a resume."""

"""What no checkpoint has and training may depend on: shown as texts, followed from save to save, and said."""

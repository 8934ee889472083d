"""Every example in the documentation runs."""

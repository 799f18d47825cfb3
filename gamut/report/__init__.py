"""A run, or several side by side, as one page to look at and the same as Markdown."""

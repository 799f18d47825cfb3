"""A page in the browser: a recording goes in, what is heard in it, and when, comes out."""

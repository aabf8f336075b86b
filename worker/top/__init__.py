"""`python -m worker top`: what Redis and the workers say (snapshot, scrape), what two of that make (frame), how it looks (view)."""

"""Reports in HTML: one file each, figures inside, nothing loaded from elsewhere."""

"""HTML reports: self-contained files with embedded figures."""

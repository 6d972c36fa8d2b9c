"""Self-contained HTML pages and matplotlib figures from results; nothing is computed here beyond the layout."""

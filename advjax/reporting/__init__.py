"""Reports for people: terminal tables, ``report.html``, plots and comparisons."""

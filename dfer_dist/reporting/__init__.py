"""Reports: tables, figures, pages and comparisons of runs."""

"""Reports: tables, plots, pages and comparisons of runs."""

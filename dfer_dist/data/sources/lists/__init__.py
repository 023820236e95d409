"""General lists of clips: tables with a path and a label, and what else is known of each clip."""

"""A local page to try a model, and the same model over HTTP."""

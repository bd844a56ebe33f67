"""On-demand expressions: what they mean, and their programs for the compiled kernel."""

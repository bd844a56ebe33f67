"""Training, and the form in which what was trained is served."""

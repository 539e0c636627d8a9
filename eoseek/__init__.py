"""What users hold: the command line and the HTTP client."""

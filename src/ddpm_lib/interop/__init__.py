"""What other libraries save, in our terms: a file per format, recognised by its keys."""

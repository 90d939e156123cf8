"""One recipe a file: `get_config()` returns a ConfigDict. Imports ml_collections only."""

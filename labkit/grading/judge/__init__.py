"""The trusted process: it holds the checks and keys, and comes to the verdict."""

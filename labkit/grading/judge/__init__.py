"""The trusted process: it has the checks and keys, and decides the verdict."""

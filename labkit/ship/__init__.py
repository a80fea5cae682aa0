"""Ship a trained adapter as a file for llama.cpp and as a running server.

`gguf` writes files, `server` runs llama.cpp here, and `recipes` has commands for other engines.
"""

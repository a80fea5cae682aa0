"""A trained adapter as a file for llama.cpp, and as a running server.

`gguf` writes files, `server` runs llama.cpp on this machine, `recipes` has commands for others.
"""

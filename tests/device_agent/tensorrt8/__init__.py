"""A stand-in for TensorRT 8's Python bindings, to be put on a process's path."""

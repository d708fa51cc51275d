"""Compilers that build without the GPU that will run what they make."""

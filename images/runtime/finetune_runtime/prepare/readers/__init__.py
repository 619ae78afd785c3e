"""Rows out of files, one module a family of formats. Every reader is a generator whose memory does not grow with the file."""

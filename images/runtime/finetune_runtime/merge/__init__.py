"""Merges an adapter into its unquantised base, file by file and block by block, so that memory does not grow with the model.

Pure: `tensors` (the file format), `adapter` (what is added to which tensor), `plan` (which files the merged model has).
Thin: `arithmetic` (torch), `rewrite` (one file), `step` (storage).
"""

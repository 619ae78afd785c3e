"""Code that runs inside ms-swift's process. A directory of its own, because ms-swift puts a plugin's directory first on sys.path."""

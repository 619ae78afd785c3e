"""The serving pod: fetch what is served, become the engine, say whether it answers."""

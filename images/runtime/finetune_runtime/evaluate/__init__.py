"""Asks a version that wants the traffic what its gate demands, through its own Service, as users will.

Pure: `expectation` (one answer), `scoring` (figures), `verdict` (sentences). They know neither the network nor a clock.
Thin: `prompts` (sources), `client` (the API), `interview` and `judge` (who is asked what), `step`.
"""

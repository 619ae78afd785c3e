"""The pieces of a decoder layer beside matrix products and attention: what they compute, what their gradients are, and both in plain torch."""

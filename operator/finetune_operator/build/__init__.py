"""Builders: values in, plain dicts of only the fields that we own out. No client, no clock."""

"""Tests that need a CUDA GPU, with the fixtures of the data plane's tests. `make gpu` runs them wherever there is one."""

pytest_plugins = ["tests.runtime.conftest"]

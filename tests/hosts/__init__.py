"""Hosts for tests: a Docker engine, images made from the distribution, machines of them."""

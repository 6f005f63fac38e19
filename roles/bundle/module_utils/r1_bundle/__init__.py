"""Bundles for closed networks: made on a connected machine, checked and used on a closed one."""

"""Plans a DeepSeek-R1 deployment: which engine, model, precision and context fit a host, and why.

Pure functions over plain data: no Ansible, no files, no network. All sizes are bytes
unless a name ends in _mib; bandwidths are GB/s (1e9 bytes per second).
"""

from __future__ import annotations

"""Limits on the I/O of a cgroup, whichever version of cgroups the node has."""

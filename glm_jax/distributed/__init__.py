"""Meshes, sharding, accelerators, and the processes of a job."""

"""Devices and processes: meshes, several hosts, compiled programs, memory, progress."""

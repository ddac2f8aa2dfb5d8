"""Measurement: one step, a workload, and a peer on the same machine.

It knows the engine's public face only.
"""

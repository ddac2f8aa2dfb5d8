"""Coding agents that plug into a server: how each is started, and whether a server speaks as they need it.

Speaks HTTP only; knows no engine.
"""

"""The engine: requests in, tokens out.

It knows scheduling, blocks and text pieces. It knows no model, no kernel, no wire format.
"""

"""The HTTP server: wire formats in, engine requests out, and back.

It knows HTTP and the dialects' JSON; it does not know how tokens are made.
"""

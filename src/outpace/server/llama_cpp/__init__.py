"""The part of llama.cpp's own dialect that editors look for: `/infill`."""

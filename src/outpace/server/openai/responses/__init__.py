"""`/v1/responses`: answers as items, with calls of functions and of freeform tools."""

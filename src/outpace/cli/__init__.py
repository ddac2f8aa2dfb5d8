"""The command line: one small module per verb. It knows the rooms below it and nothing knows it."""

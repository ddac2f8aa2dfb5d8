"""Ollama's dialect: `/api/version`, `tags`, `show`, `ps`, `chat`, `generate`, which editors look for."""

"""The `outpace` program, also as `python -m outpace`: `outpace.cli.main`, imported without collections."""

from __future__ import annotations

from outpace.cli.collector import paused_collector


def main() -> None:
    """Run the command line and exit."""
    with paused_collector():
        from outpace.cli.main import main as run
    run()


if __name__ == "__main__":
    main()

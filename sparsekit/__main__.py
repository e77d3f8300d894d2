"""`python -m sparsekit`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C is one line while its libraries are loaded too."""
    try:
        from sparsekit.cli import main as run

        run()
    except KeyboardInterrupt:
        print("sparsekit: error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

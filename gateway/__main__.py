"""``python -m gateway`` is the command ``tailrace``."""

from gateway.cli import main

main()

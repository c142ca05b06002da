"""`python -m lgjax`."""

from lgjax.cli import main

main()

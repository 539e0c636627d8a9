"""`python -m eoseek`."""

from eoseek.cli import main

main()

"""``python -m instil.cli``."""

from instil.cli import main

main()

"""The command line. `main.py` has the app and the everyday commands; the others have a file each."""

from llavit.cli.main import app

__all__ = ["app"]

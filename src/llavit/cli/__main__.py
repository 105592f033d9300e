"""`python -m llavit.cli`, for torchrun and accelerate launch."""

from llavit.cli import app

if __name__ == "__main__":
    app()

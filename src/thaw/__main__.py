"""`python -m thaw` runs the command line."""

from thaw.cli import run

if __name__ == "__main__":
    run()

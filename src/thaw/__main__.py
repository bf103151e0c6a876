"""`python -m thaw` is the command line."""

from thaw.cli import main

if __name__ == "__main__":
    main()

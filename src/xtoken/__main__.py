"""`python -m xtoken` is the `xtoken` command."""

from xtoken.cli import main

if __name__ == "__main__":
    main()

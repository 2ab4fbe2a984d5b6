"""`python -m ringhaul`: the command line."""

from ringhaul.cli.main import app

if __name__ == "__main__":
    app()

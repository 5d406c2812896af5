"""`python -m maskocr_core.cli` is `maskocr`."""

from maskocr_core.cli import main

if __name__ == "__main__":
    main()

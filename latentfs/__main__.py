"""``python -m latentfs``."""

from latentfs.cli import main

if __name__ == "__main__":
    main()

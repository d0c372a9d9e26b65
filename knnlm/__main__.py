"""``python -m knnlm`` is ``knnlm``."""

from knnlm.cli import main

if __name__ == "__main__":
    main()

"""Train a GPT on text: python train.py --help."""

from neuromanifold_gpt.cli import train_main

if __name__ == "__main__":
    raise SystemExit(train_main())

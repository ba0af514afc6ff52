"""`python -m densesiam_seg`, the same program as `densesiam-seg`: launchers such as torchrun name modules."""

from densesiam_seg.cli.app import program

if __name__ == "__main__":
    program()

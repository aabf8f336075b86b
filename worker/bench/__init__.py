"""`python -m worker bench`: every figure as a ratio to a limit measured beside it, on the same machine, in turns."""

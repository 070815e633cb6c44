"""The losses as they are run: written by hand over blocks, and equal to the references beside them."""

"""The worker: runs the arms of a comparison under torchrun, judges them, and holds Flash Clipping itself."""

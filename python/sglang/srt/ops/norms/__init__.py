"""What acts on a row by itself: norms, rotation, activations, residual adds, and the order of their sums."""

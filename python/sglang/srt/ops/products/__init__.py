"""Matrix products: the one that layers call (linear.py) and our own kernel with its tiles (matmul.py)."""

"""Matrix products: the one that layers call (linear.py), our own kernel with its tiles (matmul.py), and 16 bits on a
CPU without instructions for them (widened.py)."""

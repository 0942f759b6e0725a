"""The experts' feed-forward in Triton: align.py sorts, fused_moe.py multiplies, moe_sum.py adds up, config.py finds
tile sizes. Nothing here knows of models or requests.
"""

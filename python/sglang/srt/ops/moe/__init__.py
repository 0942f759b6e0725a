"""Experts: the router's norm and choice, and the experts' feed-forward (fused_experts.py), in Triton by align.py, which
sorts, fused_moe.py, which multiplies, and moe_sum.py, which adds up; config.py finds tile sizes.
"""

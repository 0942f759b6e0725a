"""Attention over paged KV in Triton: one file a kernel, their tile shapes as data, the loop over keys they share."""

"""What the benchmark commands share: prompts to send, the load on a server, and the numbers that come of it."""

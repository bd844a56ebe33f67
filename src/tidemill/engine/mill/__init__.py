"""The mill: ticks, policy, and the past rehearsed."""

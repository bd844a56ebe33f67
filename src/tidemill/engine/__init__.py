"""The work, stage by stage. Talks to ports only; planning, policy, gate and route are pure functions."""

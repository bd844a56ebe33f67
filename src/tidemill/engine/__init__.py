"""The work, stage by stage. Talks to ports only; planning, policy, gate and route are pure functions.

From the ground up: expressions, tables, feature views; evaluation and predictions; examples, parity; training,
monitoring and check; the mill that turns it all. A room imports from rooms below it (``pyproject.toml`` has the order,
which is tested); files of one room are named by what they hold.
"""

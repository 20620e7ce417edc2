"""The device mesh, sharding rules, ring losses, and jobs of several processes."""

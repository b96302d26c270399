"""The contenders: one module a peer, imported in the environment of that peer only."""

"""The exact state: what a weight is, what a commit does to it, and the replica that knows where it stands."""

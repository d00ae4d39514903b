"""The on-device client. Nothing is here yet: the network comes after the core (see README)."""

"""Hosts the coordinator for real clients. Nothing is here yet: the network comes after the core (see README)."""

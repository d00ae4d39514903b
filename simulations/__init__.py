"""Simulation: N virtual clients over one shared replica, driving the same coordinator as a real server."""

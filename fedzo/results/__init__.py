"""What is done with a run: rebuilt, generated from, exported, drawn, taken apart by client."""

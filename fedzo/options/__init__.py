"""The options that make a run what it is, whoever hosts it, in groups that check themselves."""

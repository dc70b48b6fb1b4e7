"""The nodes of a run: the agent that looks at one, the collection of what the agents say, and reading it back."""

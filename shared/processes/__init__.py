"""Starting processes, and what they compute together."""

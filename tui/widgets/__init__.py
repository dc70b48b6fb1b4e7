"""Parts of screens; none of them reads a file or knows a run."""

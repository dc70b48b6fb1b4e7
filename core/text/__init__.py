"""Reading text files of many kinds, and the script that makes a preset's own text."""

"""What is wrong with the environment: a probe that observes, judges that decide."""

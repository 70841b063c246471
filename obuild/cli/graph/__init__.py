"""Pictures of builds: stages, their steps, and what copies from where."""

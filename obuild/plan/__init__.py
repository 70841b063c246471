"""Plan a spec: turn it into steps with ids, and explain how two keys differ."""

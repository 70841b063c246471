"""Where steps run. An executor has `open(draft, network=…)`, a context manager that yields a session with `run`
and `send` (build.Session and build.Executor say what they promise); leaving it seals the draft's image."""
